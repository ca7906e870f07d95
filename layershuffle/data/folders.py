"""Images in class folders, such as ImageNet-1k, which are decoded when they are read."""

from pathlib import Path
from typing import Any

from torchvision.datasets import ImageFolder

from layershuffle.data.decoding import DecodedImages, open_image
from layershuffle.data.module import ImageData
from layershuffle.errors import UserError


class ImageFolders(ImageData):
    """``ROOT/train/CLASS/*`` and ``ROOT/val/CLASS/*``, as ImageNet-1k is commonly unpacked.

    The labels of ImageNet's own test set are not public, so ``val`` is the test set, as in the paper.

    Args:
        root: the folder that holds ``train`` and ``val``.
        val_fraction: the part of the training images held out to validate on; by default ``val`` is used.
    """

    def __init__(self, root: str = "data/imagenet", val_fraction: float = 0.0, **kwargs: Any) -> None:
        super().__init__(val_fraction=val_fraction, **kwargs)
        self.root = root

    @property
    def label(self) -> str:
        return Path(self.root).name

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of class folders in ``ROOT/train``."""
        return len(self._classes("train"))

    def load(self, train: bool) -> DecodedImages:
        """Raises UserError if a class folder is empty or ``val`` has other classes than ``train``."""
        if self._classes("train") != self._classes("val"):
            raise UserError(
                f"{self.root}/train has {len(self._classes('train'))} class folders and {self.root}/val has "
                f"{len(self._classes('val'))}, or other ones: they must be the same"
            )
        try:
            images = ImageFolder(Path(self.root) / ("train" if train else "val"), loader=open_image)
        except FileNotFoundError as error:
            raise UserError(f"{self.root}: {error}".splitlines()[0]) from error
        return DecodedImages(images, self.image_size, self.unreadable)

    def _classes(self, split: str) -> set[str]:
        folder = Path(self.root) / split
        classes = {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
        if not classes:
            raise UserError(
                f"{folder} has no class folders: put the images of each class into a folder of its own there, "
                f"as in {folder}/n01440764/*.JPEG"
            )
        return classes
