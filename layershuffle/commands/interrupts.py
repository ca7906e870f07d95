"""What Ctrl-C does in a command: while it imports what it needs it exits at once, and afterwards it is interrupted."""

import importlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType

import layershuffle

CODE = 130
"""What a process that Ctrl-C has ended exits with."""
MESSAGE = "interrupted"


def exit_at_once_while_importing() -> None:
    """Replace Python's handler of Ctrl-C, whose KeyboardInterrupt many a module that is being imported catches."""
    signal.signal(signal.SIGINT, _handle)


def _handle(number: int, frame: FrameType | None) -> None:
    """Exit if a command is importing something; otherwise raise KeyboardInterrupt, as Python's own handler does."""
    if _is_importing(frame):
        print(MESSAGE, file=sys.stderr, flush=True)
        os._exit(CODE)
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
