"""What a command writes to stderr: our log lines, and of the libraries only what is about the user's run."""

import logging
import sys
from typing import Any, TextIO

from layershuffle import library_messages
from layershuffle.commands.terminal import wrapped_on_terminal

logger = logging.getLogger(__name__)


class StderrHandler(logging.StreamHandler):
    """Writes to whatever ``sys.stderr`` is at the time: progress bars and tests replace it."""

    def __init__(self) -> None:
        # Not that of StreamHandler, which would keep the stream of this moment.
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        """Where the next line goes."""
        return sys.stderr


class LineFormatter(logging.Formatter):
    """INFO lines are plain; a WARNING begins with "warning: ", and is wrapped on a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        line = super().format(record)
        # INFO lines may hold a command to copy, which a line break would cut in two.
        if record.levelno <= logging.INFO:
            return line
        return wrapped_on_terminal(f"{record.levelname.lower()}: {line}")


def is_shown(record: logging.LogRecord) -> bool:
    """Whether this process shows the record: of several processes that train, only the first shows INFO lines."""
    # Where Lightning is not imported, there is just one process.
    rank_zero = sys.modules.get("lightning.fabric.utilities.rank_zero")
    return record.levelno > logging.INFO or rank_zero is None or rank_zero.rank_zero_only.rank == 0


def set_up_logging() -> None:
    """Send what the package logs to stderr, from INFO up, and quieten the libraries. A second call changes nothing."""
    logger = logging.getLogger("layershuffle")
    if not any(isinstance(handler, StderrHandler) for handler in logger.handlers):
        handler = StderrHandler()
        handler.setFormatter(LineFormatter())
        handler.addFilter(is_shown)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    library_messages.silence()


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Write a warning of a library as a line of this package: Python would add a path and a line of code.

    Commands put it in the place of ``warnings.showwarning``, whose other arguments it leaves out.
    """
    logger.warning(" ".join(str(message).split()))
