"""Images in class folders, such as ImageNet-1k, decoded as they are read."""

from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as F

from layershuffle.data.base import ImageData
from layershuffle.errors import UserError


class DecodedImages(Dataset):
    """A data set of (PIL image, label) whose images are made RGB, resized and centre cropped when read.

    Args:
        images: such a data set; if it has ``samples``, (path, label) pairs, a broken image is named by its path.
        size: height and width of the result, in pixels.
    """

    def __init__(self, images: Dataset, size: int) -> None:
        self.images, self.size = images, size

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, at: int) -> tuple[Tensor, int]:
        try:
            image, label = self.images[at]
            image = F.center_crop(F.resize(image.convert("RGB"), [self.size]), [self.size, self.size])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            name = self.images.samples[at][0] if hasattr(self.images, "samples") else f"image {at}"
            raise UserError(f"{name} can't be read as an image ({error}): replace or remove it") from error
        return F.pil_to_tensor(image), label


class ImageFolders(ImageData):
    """``ROOT/train/CLASS/*`` and ``ROOT/val/CLASS/*``, as ImageNet-1k is commonly unpacked.

    The labels of ImageNet's own test set are not public, so ``val`` is the test set, as in the paper.

    Args:
        root: the folder that holds ``train`` and ``val``.
        val_fraction: the part of the training images held out to validate on; by default none, ``val`` serves.
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
            images = ImageFolder(Path(self.root) / ("train" if train else "val"))
        except FileNotFoundError as error:
            raise UserError(f"{self.root}: {error}".splitlines()[0]) from error
        return DecodedImages(images, self.image_size)

    def _classes(self, split: str) -> set[str]:
        folder = Path(self.root) / split
        classes = {entry.name for entry in folder.iterdir() if entry.is_dir()} if folder.is_dir() else set()
        if not classes:
            raise UserError(
                f"{folder} has no class folders: put the images of each class into a folder of its own there, "
                f"as in {folder}/n01440764/*.JPEG"
            )
        return classes
