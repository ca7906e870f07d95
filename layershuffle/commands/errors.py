"""How commands fail: what a user can cause is a one-line error on stderr and a non-zero exit code.

A one-line error is one paragraph, which a terminal shows in as many lines as it needs, and one line everywhere else.
"""

import errno
import os
import re
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from layershuffle.commands import interrupts
from layershuffle.commands.logs import set_up_logging, show_warning
from layershuffle.commands.output import print_all_characters
from layershuffle.commands.terminal import wrapped_on_terminal
from layershuffle.errors import INTERRUPTED_CODE, UserError, user_error

FILE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""What can be wrong with a user's files and folders. Any other OSError is a bug, and keeps its traceback."""

CLOSED_PIPE_CODE = 141
"""What a shell reports of a program that SIGPIPE ends."""


def run(command: Callable[[], Any]) -> None:
    """Run a command and turn what a user can cause into a one-line error on stderr, without a traceback."""
    set_up_logging()
    print_all_characters()
    warnings.showwarning = show_warning
    # So that my_module.MyClass in a config or an option is found in the working folder. It comes last in the path,
    # because a user's random.py must not take the place of Python's.
    sys.path.append(os.getcwd())
    try:
        try:
            command()
        except SystemExit:
            # This is how --help ends.
            print(end="", flush=True)
            raise
        # What is still in the buffer is written here and not at the exit, so that a closed pipe is handled below.
        print(end="", flush=True)
    except KeyboardInterrupt as interrupt:
        print(wrapped_on_terminal(interrupts.message(interrupt)), file=sys.stderr)
        sys.exit(INTERRUPTED_CODE)
    except BrokenPipeError:
        # If stdout can still be written to, it is another pipe that is broken, and a bug.
        if _is_read("\n"):
            raise
        sys.exit(CLOSED_PIPE_CODE)
    except Exception as error:
        _fail(error)
    finally:
        _is_read()


def _fail(error: Exception) -> NoReturn:
    """Exit with a one-line error if a user can cause ``error``, and raise it otherwise."""
    line = _line(error)
    if line:
        notes = getattr(user_error(error), "__notes__", ())
        indented = [textwrap.indent(note, "  ") for note in notes]
        sys.exit(wrapped_on_terminal("\n".join([f"error: {line}", *indented])))

    # If the user's own class or function has failed, only its part of the traceback matters. Any other error is a bug
    # of this package, and keeps its traceback.
    frames = _users_frames(error)
    if frames:
        print(end="".join(traceback.format_list(frames)), file=sys.stderr)
        reason = " ".join("".join(traceback.format_exception_only(error)).split())
        line = f"error: the code in {frames[-1].filename}, line {frames[-1].lineno}, failed: {reason}"
        sys.exit(wrapped_on_terminal(line))
    raise error


def _is_read(text: str = "") -> bool:
    """Print ``text`` and what is left; return False if nobody reads it, such as after `layershuffle list | head -3`."""
    try:
        print(end=text, flush=True)
    except OSError:
        # Python writes its buffer again when it exits, and would complain: then it writes to nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def _line(error: Exception) -> str | None:
    """What went wrong, on one line; None for an error that no user can cause."""
    if isinstance(error, OSError) and error.errno in FILE_ERRORS:
        # An error of a file names it, unless it comes from a write. Where stdout can't be written, it is that one.
        name = error.filename
        if not name:
            name = "a file" if _is_read() else "standard output"
        return f"{name} could not be read or written: {error.strerror}"
    cause = user_error(error)
    if cause:
        return _on_one_line(cause)

    # These are imported only now, because they take seconds, which `layershuffle list` doesn't.
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from layershuffle.hardware import is_out_of_memory

    if is_out_of_memory(error):
        return "the GPU's memory is full: lower --data.batch_size, or --batch_size of layershuffle evaluate"
    if isinstance(error, MisconfigurationException):
        return _on_one_line(error)
    return None


def _on_one_line(error: Exception) -> str:
    """What an exception says, without line breaks and other control characters."""
    text = str(error)
    # From a DataLoader's worker process an error arrives with a traceback as its message; the last line is the error.
    if "Original Traceback" in text:
        text = text.rstrip().rpartition(f"{UserError.__name__}: ")[2]
    on_one_line = re.sub(r"\s*\n\s*", " ", text.strip())
    # A file's name may hold anything, and a terminal obeys control characters.
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", "?", on_one_line)


def _users_frames(error: Exception) -> list[traceback.FrameSummary]:
    """The part of the traceback in the user's modules that this package has called; empty if there are none."""
    package = Path(__file__).parents[1]
    working_folder = Path.cwd()
    is_called = False
    frames: list[traceback.FrameSummary] = []
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        if path.is_relative_to(package):
            is_called = True
        elif is_called and path.is_relative_to(working_folder) and "site-packages" not in path.parts:
            frames.append(frame)
    return frames
