"""How commands fail: what a user can cause is one sentence on stderr and a non-zero exit code."""

import errno
import os
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from layershuffle.commands.logs import set_up_logging
from layershuffle.errors import UserError

FILE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)
"""What can be wrong with a user's files and folders. Any other OSError is a bug, and keeps its traceback."""


def run(command: Callable[[], Any]) -> None:
    """Run a command and turn what a user can cause into one sentence on stderr, without a traceback."""
    set_up_logging()
    sys.path.append(os.getcwd())  # so that my_module.MyClass in a config or flag is found in the working folder
    try:
        command()
        print(end="", flush=True)  # so that an error in writing what is left is caught here too
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        if _is_read("\n"):
            raise  # some other pipe is broken
        sys.exit(1)
    except Exception as error:
        if sentence := _sentence(error):
            sys.exit(f"error: {sentence}")
        if frames := _users_frames(error):
            print(end="".join(traceback.format_list(frames)), file=sys.stderr)
            what = " ".join("".join(traceback.format_exception_only(error)).split())
            sys.exit(f"error: the code in {frames[-1].filename}, line {frames[-1].lineno}, failed: {what}")
        raise
    finally:
        _is_read()


def _is_read(text: str = "") -> bool:
    """Print ``text`` and what is left; return False if nobody reads it, such as after `layershuffle list | head -3`."""
    try:
        print(end=text, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python tries again when it exits.
        return False
    return True


def _sentence(error: Exception) -> str | None:
    """What went wrong, on one line; None for an error that no user can cause."""
    if isinstance(error, OSError) and error.errno in FILE_ERRORS:
        return f"{error.filename or 'a file'} could not be read or written: {error.strerror}"
    cause: Exception | None = user_error(error)
    if not cause:
        import torch  # here, because `layershuffle list` is quick only without it
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        if isinstance(error, torch.OutOfMemoryError):
            return "the GPU's memory is full: lower --data.batch_size, or --batch_size of layershuffle evaluate"
        if not isinstance(error, MisconfigurationException):
            return None
    text = str(cause or error)
    if "Original Traceback" in text:  # a DataLoader's worker wraps the message in its traceback
        text = text.rstrip().rpartition("UserError: ")[2]
    return re.sub(r"\s*\n\s*", " ", text.strip())


def _users_frames(error: Exception) -> list[traceback.FrameSummary]:
    """The part of the traceback in modules of the user's own that this package has called; empty if there are none."""
    package, here, called = Path(__file__).parents[1], Path.cwd(), False
    frames: list[traceback.FrameSummary] = []
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        ours = path.is_relative_to(package)
        called = called or ours
        if called and not ours and path.is_relative_to(here) and "site-packages" not in path.parts:
            frames.append(frame)
    return frames


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError among an exception and its causes, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error
