"""Finds the user's picture files, also in folders."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from layershuffle.data.description import describe_left_out
from layershuffle.data.walking import PictureWalk, why_not_regular
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
        if os.path.isdir(name):
            walk = PictureWalk()
            paths += walk.pictures(name)
            left_out += walk.left_out
        elif why_not_regular(name):
            raise UserError(f"{name} is a pipe or a device, not a picture file or a folder")
        else:
            paths.append(name)

    for line in describe_left_out(left_out):
        logger.info("%s", line)
    if not paths:
        raise UserError(f"there is no picture in {', '.join(map(str, names))}")
    # A file can be named twice, or be in a folder that is named too.
    return list(dict.fromkeys(paths))
