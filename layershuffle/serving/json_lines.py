"""Files of a JSON object on each line, whole even if the process that writes them is killed."""

import errno
import json
import os
from pathlib import Path
from typing import Any, Self

from layershuffle.errors import UserError

LONGEST = 1 << 20
"""A number of bytes that no line has."""


class JsonLines:
    """Appends lines to a file, each with one system call, so that killing the process can't cut a line in two.

    A last line that a full disk or a power cut has left unfinished is removed first.

    Args:
        path: the file, which may already have lines.
        first: the first key of the first line, by which such a file is known.
        kind: what such a file is called, such as "an event log".

    Attributes:
        torn: whether an unfinished last line was removed.

    Raises:
        UserError: if the file can't be written, or is something else.
    """

    def __init__(self, path: str | os.PathLike, first: str, kind: str) -> None:
        self.path = path
        beginning = f'{{"{first}": '.encode()
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, len(beginning), 0) != beginning:
                raise UserError(f"{path} is not {kind}: give the name of a new file")
            tail = os.pread(self._file, LONGEST, max(0, size - LONGEST))
            whole_lines = size - len(tail) + tail.rfind(b"\n") + 1
            self.torn = whole_lines < size
            os.ftruncate(self._file, whole_lines)
        except OSError as error:
            raise UserError(f"{path} can't be written: {error.strerror}") from error

    def append(self, content: dict[str, Any]) -> None:
        """Append a line; raises OSError if it can't be written, and then leaves nothing of it in the file."""
        line = (json.dumps(content) + "\n").encode()
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
