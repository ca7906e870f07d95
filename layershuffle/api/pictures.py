"""The user's picture files: finding them in folders, and reading them for a model."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data.decoding import UNDECODABLE, open_image, why_left_out
from layershuffle.data.folders import describe_left_out
from layershuffle.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unreadable:
    """A picture that can't be read.

    Attributes:
        path: the path of its file.
        reason: what Pillow says.
    """

    path: str
    reason: str


class Pictures(Dataset):
    """The model's input for each picture, or why there is none.

    Args:
        paths: the files of the pictures.
        model: the model, which knows how images are preprocessed.
    """

    def __init__(self, paths: Sequence[str], model: LoadedModel) -> None:
        self.paths = paths
        self.model = model

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor] | Unreadable:
        """The path of a picture and its pixels, float32 [channels, size, size]."""
        path = self.paths[index]
        try:
            pixels = self.model.preprocess([open_image(path)])
        except UNDECODABLE as error:
            return Unreadable(path, str(error))
        return path, pixels[0]


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
    """The paths of all files below a folder, sorted."""
    for parent, _, files in sorted(os.walk(folder, followlinks=True)):
        for file in sorted(files):
            yield os.path.join(parent, file)
