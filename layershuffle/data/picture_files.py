"""Finds the user's picture files, also in folders."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from layershuffle.data.decoding import why_left_out
from layershuffle.data.folders import describe_left_out
from layershuffle.errors import UserError

logger = logging.getLogger(__name__)


def find_pictures(names: Sequence[str | Path]) -> list[str]:
    """The files among ``names``, and all pictures in the folders among them, each once.

    Files in these folders that are no pictures are logged with the reason.

    Raises:
        UserError: if one of the names is neither a file nor a folder, or there is no picture.
    """
    paths: list[str] = []
    left_out: list[tuple[str, str]] = []
    for name in map(str, names):
        if not os.path.exists(name):
            raise UserError(f"there is no file or folder {name}")
        if not os.path.isdir(name):
            paths.append(name)
            continue
        for path in _files_below(name):
            reason = why_left_out(path, name)
            if reason:
                left_out.append((path, reason))
            else:
                paths.append(path)

    for line in describe_left_out(left_out):
        logger.info("%s", line)
    if not paths:
        raise UserError(f"there is no picture in {', '.join(map(str, names))}")
    return list(dict.fromkeys(paths))


def _files_below(folder: str) -> Iterator[str]:
    """The paths of all files below a folder, sorted. A folder that links lead to again is read once."""
    seen: set[str] = set()
    files_of: dict[str, list[str]] = {}
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        files_of[parent] = files
    for parent in sorted(files_of):
        for file in sorted(files_of[parent]):
            yield os.path.join(parent, file)
