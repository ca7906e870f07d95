"""Limits how much is logged of connections, by which clients could otherwise make a server fill the disk."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp.http import HttpProcessingError
from aiohttp.web import RequestPayloadError

LIMITED = ("asyncio", "aiohttp.server", "aiohttp.web", "layershuffle.serving.connections")
"""The loggers to which clients can cause any number of lines."""


class LogLimit(logging.Filter):
    """Lets a few records through in each period; the first of the next one says how many were left out.

    What a client did wrong is a line without a traceback.

    Args:
        most: how many in a period.
        seconds: how long a period is.
    """

    def __init__(self, most: int = 5, seconds: float = 60.0) -> None:
        super().__init__()
        self.most = most
        self.seconds = seconds
        self.ends = 0.0
        self.count = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is logged."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, (HttpProcessingError, RequestPayloadError)):
            # A client chooses this text: it may be long, and have line breaks that look like other messages.
            reason = " ".join(str(error).split())[:200]
            record.msg = f"{record.getMessage()}: {reason}"
            record.args = None
            record.exc_info = None

        # The first record after the end of a period begins the next one.
        now = time.monotonic()
        if now >= self.ends:
            left_out = self.count - self.most
            if left_out > 0:
                record.msg = f"{record.getMessage()} ({left_out:,} messages before this one were left out)"
                record.args = None
            self.ends = now + self.seconds
            self.count = 0
        self.count += 1
        return self.count <= self.most


@contextmanager
def limited_logs() -> Iterator[None]:
    """Within this context the loggers ``LIMITED`` log a few lines a minute."""
    filters = {name: LogLimit() for name in LIMITED}
    for name, limit in filters.items():
        logging.getLogger(name).addFilter(limit)
    try:
        yield
    finally:
        for name, limit in filters.items():
            logging.getLogger(name).removeFilter(limit)
