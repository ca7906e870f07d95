"""Files of a JSON object on each line, whole even if the process that writes them is killed."""

import errno
import json
import os
from typing import Any, Self

from layershuffle.errors import UserError
from layershuffle.files import WriterLock

LONGEST = 1 << 20
"""A number of bytes that no line has."""


class JsonLines:
    """Appends lines to a file, each with one system call, so that killing the process hardly ever cuts a line in two.

    A last line that a kill, a full disk or a power cut has left unfinished is removed first. Until the file is closed,
    no other process can append to it.

    Args:
        path: the file, which may already have lines.
        first: the first key of the first line, by which such a file is known.
        kind: what such a file is called, such as "an event log".

    Attributes:
        torn: whether an unfinished last line was removed.

    Raises:
        UserError: if the file can't be written, is being written by another process, or is something else.
    """

    def __init__(self, path: str | os.PathLike, first: str, kind: str) -> None:
        self.path = path
        # The lock comes first: what looks like half a line may be one that another process is writing.
        self._lock = WriterLock(path)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            self.torn = self._remove_half_a_line(f'{{"{first}": '.encode(), kind)
        except OSError as error:
            self._lock.close()
            raise UserError(f"{path} can't be written: {error.strerror}") from error
        except UserError:
            self.close()
            raise

    def _remove_half_a_line(self, beginning: bytes, kind: str) -> bool:
        """Cut the file after its last whole line, and return whether there was more."""
        size = os.fstat(self._file).st_size
        if size and os.read(self._file, len(beginning)) != beginning:
            raise UserError(f"{self.path} is not {kind}: give the name of a new file")
        # The end is enough to find the last line in: a long file needn't be read again at each start.
        os.lseek(self._file, max(0, size - LONGEST), os.SEEK_SET)
        tail = os.read(self._file, LONGEST)
        # rfind returns -1 if there is no line break, and then the only line is unfinished.
        end_in_tail = tail.rfind(b"\n") + 1
        end_of_whole_lines = size - len(tail) + end_in_tail
        os.ftruncate(self._file, end_of_whole_lines)
        return end_of_whole_lines < size

    def append(self, content: dict[str, Any]) -> None:
        """Append a line; raises OSError if it can't be written, and then leaves nothing of it in the file."""
        line = (json.dumps(content) + "\n").encode()
        # A buffered file would split a long line over two calls, between which this process may be killed.
        written = os.write(self._file, line)
        if written < len(line):
            os.ftruncate(self._file, os.fstat(self._file).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def close(self) -> None:
        """Close the file, so that others can append to it."""
        os.close(self._file)
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
