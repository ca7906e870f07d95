"""The user's picture files, read for a model."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import Dataset

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data.decoding import UNDECODABLE, open_image


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
            pixels = self.model.preprocess([open_image(path, self.model.channels)])
        except UNDECODABLE as error:
            return Unreadable(path, str(error))
        return path, pixels[0]
