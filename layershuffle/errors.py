"""The one exception that means: the user can fix this; and how a command ends that Ctrl-C has interrupted."""

import reprlib
from typing import Any

INTERRUPTED_CODE = 130
"""What a process that Ctrl-C has ended exits with."""
NOTHING_WRITTEN = "interrupted: nothing was written"
"""What it says, unless it knows more."""


class UserError(ValueError):
    """What is wrong and what to do, in one sentence; the command lines print it without a traceback."""


def user_error(error: BaseException | None) -> UserError | None:
    """The UserError among an exception and its causes, if there is one."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def last_line(error: BaseException) -> str:
    """The last line of what an exception says, or the name of its class if it says nothing."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[-1].strip()


def is_network_error(error: Exception) -> bool:
    """Whether ``error`` is of the kinds that the Hugging Face hub's client raises where there is no network."""
    # By the names of the modules: which of these libraries is installed depends on the version of the hub's client.
    libraries = ("httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub", "requests", "urllib3")
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in libraries


def shown(value: Any) -> str:
    """The beginning of a value for an error message, whatever it is: on one line, and without printing all of it."""
    # reprlib looks no deeper than it shows, so that a list that holds itself is no trouble.
    short = reprlib.Repr()
    short.maxstring = short.maxother = 100
    try:
        text = short.repr(value)
    except Exception:  # An object may raise anything here, and so does a number of more than 4,300 digits.
        text = f"a {type(value).__name__}"
    return " ".join(text.split())[:200]
