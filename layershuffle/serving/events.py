"""Files of a JSON object on each line, whole even if the process that writes them is killed; the event log is one."""

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from layershuffle.errors import UserError
from layershuffle.serving.router import Ended

LONGEST = 1 << 20
"""A number of bytes that no line has."""


class Lines:
    """Appends lines to a file, each with one system call, so that killing the process can't cut a line in two.

    A last line that a full disk or a power cut has left unfinished is removed first.

    Args:
        path: the file, which may already have lines.
        first: the first key of the first line, by which such a file is known.
        what: what such a file is called, such as "an event log".

    Attributes:
        torn: whether an unfinished last line was removed.

    Raises:
        UserError: if the file can't be written, or is something else.
    """

    def __init__(self, path: str | os.PathLike, first: str, what: str) -> None:
        self.path = path
        begin = f'{{"{first}": '.encode()
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, len(begin), 0) != begin:
                raise UserError(f"{path} is not {what}: give the name of a new file")
            tail = os.pread(self._file, LONGEST, max(0, size - LONGEST))
            whole = size - len(tail) + tail.rfind(b"\n") + 1
            self.torn = whole < size
            os.ftruncate(self._file, whole)
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}") from error

    def append(self, content: dict[str, Any]) -> None:
        """Append a line; raises OSError if it can't be written, and then leaves nothing of it in the file."""
        line = (json.dumps(content) + "\n").encode()
        if (written := os.write(self._file, line)) < len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class EventLog:
    """Appends events to a file, and tells a listener of them.

    If a full disk ends the file, that is said on stderr, and the process goes on without it.

    Args:
        path: the file, which may already have events; None for no file.
        listener: what is called with the name of each event and what else is known of it.

    Raises:
        UserError: if the file can't be written, or is something else.
    """

    def __init__(self, path: str | os.PathLike | None, listener: Callable[..., Any] | None = None) -> None:
        self._lines = None if path is None else Lines(path, "time", "an event log")
        self.listener = listener

    def write(self, event: str, time: float, **more: Any) -> None:
        """Append an event that happened at ``time``, in seconds."""
        if self.listener is not None:
            self.listener(event, **more)
        if self._lines is not None:
            try:
                self._lines.append({"time": round(time, 3), "event": event, **more})
            except OSError as error:
                reason = f"the event log {self._lines.path} ends here, since it can't be written: {error.strerror}"
                print(reason, file=sys.stderr)
                self.close()

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
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
