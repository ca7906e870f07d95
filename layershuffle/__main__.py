"""The ``layershuffle`` command, which is also ``python -m layershuffle``, from its first moment.

``layershuffle.commands`` has the command itself. This file makes it end well if Ctrl-C comes before that is imported.
"""

import os
import signal
from types import FrameType

from layershuffle.errors import INTERRUPTED_CODE, NOTHING_WRITTEN


def main(args: list[str] | None = None) -> None:
    """Run the command that ``args`` name, by default the arguments of the process."""
    # Python's own handler would print a traceback of whatever is being imported. The commands' own takes over later.
    signal.signal(signal.SIGINT, _exit_at_once)

    from layershuffle import commands

    commands.main(args)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{NOTHING_WRITTEN}\n".encode())
    # Not sys.exit, which raises an exception: what is being imported may catch it.
    os._exit(INTERRUPTED_CODE)


if __name__ == "__main__":
    main()
