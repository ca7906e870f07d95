"""What Ctrl-C does in a command: while it imports what it needs it exits at once, and afterwards it is interrupted."""

import importlib
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import layershuffle
from layershuffle import files
from layershuffle.errors import INTERRUPTED_CODE, NOTHING_WRITTEN

MOST_NAMED = 3
"""So many of the files that were written are named."""


@contextmanager
def on_interrupt(remark: str) -> Iterator[None]:
    """Within this context, a command that is interrupted says ``remark``, such as how it goes on where it was."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        interrupt.add_note(remark)
        raise


def message(interrupt: KeyboardInterrupt | None = None) -> str:
    """What a command says that has been interrupted: what is left of its work."""
    # The outermost remark is the command's own; inner ones come from the parts that it calls.
    remarks = getattr(interrupt, "__notes__", [])
    if remarks:
        return f"interrupted: {remarks[-1]}"
    # Most commands write once they have the result. Some write aside first, and remove that.
    written = [str(path) for path in files.written if path.exists()]
    if not written:
        return NOTHING_WRITTEN
    names = ", ".join(written[:MOST_NAMED])
    if len(written) > MOST_NAMED:
        names += f" and {len(written) - MOST_NAMED} more"
    return f"interrupted: it had written {names}"


def exit_at_once_while_importing() -> None:
    """Replace Python's handler of Ctrl-C, whose KeyboardInterrupt many a module that is being imported catches."""
    signal.signal(signal.SIGINT, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    """Exit if a command is importing something; otherwise raise KeyboardInterrupt, as Python's own handler does."""
    if _is_importing(frame):
        print(message(), file=sys.stderr, flush=True)
        # Not sys.exit, which raises an exception: what is being imported may catch that too.
        os._exit(INTERRUPTED_CODE)
    raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a command, or what the package imports when it is first used, imports something in this frame.

    What the libraries import later, while a command works, doesn't count: a training saves a checkpoint first.
    """
    importer = None
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            importer = frame.f_back
        frame = frame.f_back
    # Between an import by name and what asks for it stands importlib.import_module.
    if importer is not None and importer.f_code.co_filename == importlib.__file__:
        importer = importer.f_back
    if importer is None:
        return False
    path = Path(importer.f_code.co_filename)
    return path.parent == Path(__file__).parent or path == Path(layershuffle.__file__)
