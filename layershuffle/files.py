"""Reads files that others may have written, of limited size, and writes files whole or not at all."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from layershuffle.errors import UserError

MAX_JSON_BYTES = 200 << 20
MAX_YAML_BYTES = 1 << 20


def read_json(path: str | Path, most: int = MAX_JSON_BYTES, what: str = "JSON") -> Any:
    """The content of a JSON file of at most ``most`` bytes, which error messages call ``what``.

    Raises:
        UserError: if it isn't there, can't be read, is larger, or isn't JSON.
    """
    return _read(path, most, what, json.loads)


def read_yaml(path: str | Path) -> Any:
    """The content of a YAML file, as plain values; raises UserError as ``read_json``."""
    return _read(path, MAX_YAML_BYTES, "YAML", yaml.safe_load)


def _read(path: str | Path, most: int, what: str, parse: Callable[[str], Any]) -> Any:
    try:
        with open(path, "rb") as file:
            content = file.read(most + 1)  # rather than asking for its size, which a pipe doesn't have
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


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a file aside and rename it, so that after a crash or on a full disk the earlier file is still there.

    Raises UserError if it can't be written.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with aside.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path} could not be written: {error.strerror}") from error
