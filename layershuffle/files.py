"""Reads files that others may have written, of limited size, and writes files whole or not at all."""

import errno
import hashlib
import json
import logging
import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import yaml

from layershuffle.errors import UserError

logger = logging.getLogger(__name__)

MAX_JSON_BYTES = 200 << 20
MAX_YAML_BYTES = 1 << 20
MAX_YAML_VALUES = 1 << 20

_HELD: set[Path] = set()
"""The locks that this process has; the system's locks keep out other processes alone."""


def read_json(path: str | Path, most: int = MAX_JSON_BYTES, what: str = "JSON") -> Any:
    """The content of a JSON file of at most ``most`` bytes, which error messages call ``what``.

    Raises:
        UserError: if it isn't there, can't be read, is larger, or isn't JSON.
    """
    return _read(path, most, what, json.loads)


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file, as plain values; raises UserError as ``read_json``."""
    return _read(path, MAX_YAML_BYTES, "YAML", _parse_yaml)


class _Loader(yaml.SafeLoader):
    """Raises ValueError for a key that a mapping has twice; PyYAML keeps the last one in silence."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in keys:
                raise ValueError(f"line {key.start_mark.line + 1} repeats the key {key.value}")
            keys.add((key.tag, key.value))
        return node


def _parse_yaml(text: str) -> Any:
    """The values of a YAML text, in which aliases may not stand for more than a file can hold."""
    # It derives from the safe loader.
    content = yaml.load(text, _Loader)
    # A list in place of recursion, so that deep nesting can't exhaust the stack.
    waiting = [content]
    count = 0
    while waiting:
        part = waiting.pop()
        count += 1
        if count > MAX_YAML_VALUES:
            raise ValueError(f"its aliases stand for more than {MAX_YAML_VALUES:,} values")
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, (list, tuple, set)):
            waiting.extend(part)
    return content


def _read(path: str | Path, most: int, what: str, parse: Callable[[str], Any]) -> Any:
    try:
        content = read_beginning(path, most + 1)  # rather than asking for its size, which a pipe doesn't have
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes, which no such file should: it was not read")
    try:
        return parse(content.decode())
    except (ValueError, RecursionError, yaml.YAMLError, TypeError, KeyError, AttributeError, IndexError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is not {what} or is damaged: {reason}") from error


def read_beginning(path: str | Path, count: int) -> bytes:
    """The first ``count`` bytes of a file, or all of a shorter one; raises OSError if it can't be read."""
    with open(path, "rb", opener=open_without_waiting) as file:
        return file.read(count)


def open_without_waiting(path: str, flags: int) -> int:
    """Open a file for ``open`` as its ``opener``: a pipe into which nobody writes is empty, and isn't waited for."""
    if sys.platform == "win32":  # None of its files is a pipe.
        return os.open(path, flags)
    file = os.open(path, flags | os.O_NONBLOCK)
    os.set_blocking(file, True)  # Whoever has opened the pipe for writing may take their time.
    return file


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


written: list[Path] = []
"""The files that this process has written whole, each of them once."""


def write_whole(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a file aside and rename it, so that after a crash or on a full disk the earlier file is still there.

    Raises UserError if it can't be written.
    """
    path = Path(path)
    # In a folder that others can write to, they could put a link in the place of a name that they can foresee. The name
    # begins with the file's own, unless that is too long, so that what a killed process has left can be found.
    stem = path.name if len(os.fsencode(path.name)) <= 200 else "layershuffle"
    aside = path.with_name(f".{stem}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("xb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                # The rename could otherwise reach the disk before the content, and a power cut leave an empty file.
                os.fsync(file.fileno())
            aside.replace(path)
            if path not in written:
                written.append(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror}{_remedy(error)}") from error


def append_whole(path: Path, content: str) -> None:
    """Append to a file, which is made if it isn't there. On a full disk nothing of the content is left in it.

    Raises UserError if it can't be written.
    """
    size = path.stat().st_size if path.is_file() else None
    try:
        try:
            with path.open("ab") as file:
                file.write(content.encode())
        except OSError:
            # Its first part may have been written.
            if size is None:
                path.unlink(missing_ok=True)
            else:
                os.truncate(path, size)
            raise
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror}{_remedy(error)}") from error


def _remedy(error: OSError) -> str:
    """What to do about an error of writing, where it is plain."""
    return "; free some space and try again" if is_of_full_disk(error) else ""


def is_of_full_disk(error: BaseException | None) -> bool:
    """Whether an exception, or one that has caused it, says that a disk or the user's share of it is full."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def check_writable(path: Path) -> None:
    """Make the folder of a file; raises UserError if the file can't be written there."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only writing a file tells whether one can be written.
        tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}): give another --output") from error


class WriterLock:
    """Keeps other processes from writing a file or into a folder, until it is closed or this process ends.

    The lock is a hidden file beside the one that it is for, which names the process; closing removes it. Readers don't
    heed it. Where the file system has no locks, a warning says so, and nobody is kept out; nor is anybody on Windows.

    Args:
        path: the file or the folder to write, which needn't exist. Links to it share its lock.

    Raises:
        UserError: if another process, which the message names, or another part of this one writes it, or if the
            lock can't be made.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        target = Path(os.path.realpath(path))
        self.path = target.with_name(f".{target.name}.lock")
        self._file: int | None = None
        if self.path in _HELD:
            raise UserError(f"{path} is being written by another part of this process: wait for it")
        try:
            self._lock(path)
        except OSError as error:
            self.close()  # On a full disk the file was made, but not written.
            raise UserError(f"{path} can't be locked for writing: {error.strerror}{_remedy(error)}") from error
        _HELD.add(self.path)

    def _lock(self, path: str | os.PathLike) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            return

        import fcntl

        while self._file is None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
            try:
                # Unlike flock, lockf ends with this process even if a child of it lives on for a moment.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                holder = _named_process(os.pread(file, 300, 0))
                os.close(file)
                raise UserError(f"{path} is being written by {holder}: wait for it, or stop it") from error
            except OSError as error:
                os.close(file)
                if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                    raise
                logger.warning("%s is not locked, as its file system has no locks: let one process write it", path)
                return

            # Whoever had the lock before may have removed its file between the two calls.
            if self._is_current(file):
                self._file = file
            else:
                os.close(file)

        os.ftruncate(self._file, 0)
        os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def _is_current(self, file: int) -> bool:
        """Whether an open file is the one that has the name of the lock."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(file))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Let others write; a second call changes nothing."""
        _HELD.discard(self.path)
        if self._file is not None:
            # Removed while it is locked, or it would be that of somebody else.
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _named_process(content: bytes) -> str:
    """The process that the content of a lock's file names."""
    # Whatever else somebody has put there may not reach the terminal.
    name = re.match(r"process \d+ on [\w.-]+", content.decode(errors="replace"))
    return name[0] if name else "another process"
