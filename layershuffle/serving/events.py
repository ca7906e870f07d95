"""The event log: a JSON object on each line, whole even if the process that writes it is killed."""

import json
import os
from pathlib import Path
from typing import Any, Self

from layershuffle.errors import UserError
from layershuffle.serving.router import Ended

FIRST = b'{"time": '
LONGEST = 1 << 20
"""How each line begins, and a number of bytes that none has."""


class EventLog:
    """Appends events to a file, each with one system call, so that killing the process can't cut a line in two.

    A last line that a full disk or a power cut has left unfinished is removed first.

    Args:
        path: the file, which may already have events; None for no log.

    Raises:
        UserError: if the file can't be written, or is something else.
    """

    def __init__(self, path: str | os.PathLike | None) -> None:
        self._file: int | None = None
        if path is None:
            return
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, len(FIRST), 0) != FIRST:
                raise UserError(f"{path} is not an event log: give the name of a new file")
            tail = os.pread(self._file, LONGEST, max(0, size - LONGEST))
            os.ftruncate(self._file, size - len(tail) + tail.rfind(b"\n") + 1)
        except OSError as error:
            raise UserError(f"the event log {path} can't be written: {error.strerror}") from error

    def write(self, event: str, time: float, **more: Any) -> None:
        """Append an event that happened at ``time``, in seconds."""
        if self._file is not None:
            line = json.dumps({"time": round(time, 3), "event": event, **more}) + "\n"
            os.write(self._file, line.encode())

    def ended(self, ended: Ended, time: float, **more: Any) -> None:
        """Append that a request ended, in the form that ``orders.recorded.read_orders`` reads."""
        order = " ".join(map(str, ended.order))
        missed, seconds = list(ended.missed), round(ended.seconds, 3)
        self.write(
            "ended",
            time,
            request=ended.request,
            order=order,
            missed=missed,
            seconds=seconds,
            failed=ended.failed,
            **more,
        )

    def close(self) -> None:
        """Close the file; later events are lost."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
