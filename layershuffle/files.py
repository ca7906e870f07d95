"""Reads text that others may have written: its size is looked at before memory is taken for it."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import yaml

from layershuffle.errors import UserError

MAX_JSON_BYTES = 200 << 20
MAX_YAML_BYTES = 1 << 20
MAX_YAML_NODES = 100_000


def read_text(path: str | Path, most: int, what: str = "text") -> str:
    """A UTF-8 file of at most ``most`` bytes, which is meant to be ``what``.

    Raises:
        UserError: if it isn't there, can't be read, is larger or is no text.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)  # what is read counts: a pipe has no size, and a file can grow
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}") from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes, which no such file should: it was not read")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not {what} or is damaged: {error}") from error


def read_json(path: str | Path, most: int = MAX_JSON_BYTES, what: str = "JSON") -> Any:
    """What a JSON file holds, which is meant to be ``what``.

    Raises:
        UserError: as ``read_text``, and if it isn't JSON.
    """
    try:
        return json.loads(read_text(path, most, what))
    except RecursionError as error:
        raise UserError(f"{path} is not {what} or is damaged: it is nested too deeply") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path} is not {what} or is damaged: {error}") from error


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, as plain values.

    Raises:
        UserError: as ``read_text``, and if it isn't YAML, or its aliases unfold to more than any config needs.
    """
    text = read_text(path, MAX_YAML_BYTES, "YAML")
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is not None and _unfolded(node, {}) > MAX_YAML_NODES:
            raise UserError(f"{path} unfolds to more than {MAX_YAML_NODES:,} values: it was not read")
        return yaml.safe_load(text)
    except RecursionError as error:
        raise UserError(f"{path} is not YAML: it is nested too deeply") from error
    except UserError:
        raise
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is not YAML: {error}") from error


def _unfolded(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node comes to when each alias is a copy; far too many if it contains itself."""
    if id(node) not in known:
        known[id(node)] = MAX_YAML_NODES + 1  # until it is counted
        children: list[Any] = node.value if isinstance(node, (yaml.SequenceNode, yaml.MappingNode)) else []
        flat = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_unfolded(child, known) for child in flat)
    return known[id(node)]


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write aside and rename, so that a crash or a full disk leaves what was there before.

    Raises:
        UserError: (a ValueError) if it can't be written.
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
