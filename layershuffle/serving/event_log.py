"""The log of what happens while requests run, in a file whose orders can be evaluated and trained with."""

import logging
import os
from collections.abc import Callable
from typing import Any, Self

from layershuffle.serving.actions import Ended
from layershuffle.serving.json_lines import JsonLines

logger = logging.getLogger(__name__)


class EventLog:
    """Appends events to a file, and tells a listener of them.

    If a full disk ends the file, that is logged as a warning, and the process goes on without it.

    Args:
        path: the file, which may already have events; None for no file.
        listener: what is called with the name of each event and what else is known of it.

    Raises:
        UserError: if the file can't be written, or is something else.
    """

    def __init__(self, path: str | os.PathLike | None, listener: Callable[..., Any] | None = None) -> None:
        self._lines = None if path is None else JsonLines(path, "time", "an event log")
        self.listener = listener

    def write(self, event: str, time: float, **more: Any) -> None:
        """Append an event that happened at ``time``, in seconds."""
        # The listener first: metrics go on when the disk is full.
        if self.listener is not None:
            self.listener(event, **more)
        if self._lines is None:
            return
        try:
            self._lines.append({"time": round(time, 3), "event": event, **more})
        except OSError as error:
            path = self._lines.path
            logger.warning("the event log %s ends here, since it can't be written: %s", path, error.strerror)
            self.close()

    def ended(self, ended: Ended, time: float, travelled: int | None = None) -> None:
        """Append that a request ended, in the form that ``orders.recorded.read_orders`` reads.

        ``travelled`` is how many bytes went to nodes and back for it, if that was counted.
        """
        more = {} if travelled is None else {"bytes": travelled}
        self.write(
            "ended",
            time,
            request=ended.request,
            order=str(ended.order),
            missed=list(ended.missed),
            seconds=round(ended.seconds, 3),
            failed=ended.failed,
            **more,
        )

    def close(self) -> None:
        """Close the file; later events are lost."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
