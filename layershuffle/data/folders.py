"""Images in class folders, such as ImageNet-1k: decoded when they are read, or packed before.

What ``layershuffle pack`` makes holds ``train.uint8`` and ``val.uint8``, which are the images [3, size, size] one after
the other in the sequence of their class folders, and ``index.json``, which has the number of images of each class.
"""

import hashlib
import json
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import find_classes

from layershuffle.data.module import ImageData
from layershuffle.data.preprocessing import DecodedImages, open_image
from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole

INDEX = "index.json"
FORMAT = 1


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
        classes, others = self._classes("train"), self._classes("val")
        if classes != others:
            raise UserError(
                f"{self.root}/train has {len(classes)} class folders and {self.root}/val has {len(others)}, or other "
                "ones: they must be the same"
            )
        try:
            images = ImageFolder(Path(self.root) / ("train" if train else "val"), loader=open_image)
        except FileNotFoundError as error:
            raise UserError(f"{self.root}: {error}".splitlines()[0]) from error
        return DecodedImages(images, self.image_size, self.unreadable, *self.resizing)

    def _classes(self, split: str) -> list[str]:
        folder = Path(self.root) / split
        try:
            return find_classes(folder)[0]
        except OSError as error:
            raise UserError(
                f"{folder} has no class folders: put the images of each class into a folder of its own there, "
                f"as in {folder}/n01440764/*.JPEG"
            ) from error


def record_size(size: int) -> int:
    """The bytes of one image of ``size`` x ``size`` pixels."""
    return 3 * size * size


def records_file(folder: Path, split: str) -> Path:
    """The file with the images of "train" or "val"."""
    return folder / f"{split}.uint8"


class PackedImages(Dataset):
    """One split of a packed folder: a file of uint8 images [images, 3, size, size], and int64 labels [images]."""

    def __init__(self, path: Path, labels: Tensor, size: int) -> None:
        self.path, self.labels, self.size = path, labels, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch. Raises UserError if the file is gone or has become shorter."""
        # The file is read, not mapped: if it were cut short or its disk failed, a map would kill the process.
        length = record_size(self.size)
        images = torch.empty(len(indices), 3, self.size, self.size, dtype=torch.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                for index in indices:  # A disk that knows the whole batch can read it in the best sequence.
                    os.posix_fadvise(file.fileno(), index * length, length, os.POSIX_FADV_WILLNEED)
                for image, index in zip(images.numpy(), indices):
                    if os.preadv(file.fileno(), [image], index * length) != length:
                        raise UserError(f"{self.path} ends before its image {index}: pack it again")
        except OSError as error:
            raise UserError(f"{self.path} could not be read: {error.strerror}") from error
        return images, self.labels[indices]


class PackedFolders(ImageFolders):
    """Class folders packed by ``layershuffle pack``: bit for bit the images and labels of ``ImageFolders``.

    If they were packed larger than the model takes, they are resized on the device, or cropped at random.

    Args:
        root: the packed folder.
    """

    def __init__(self, root: str = "data/imagenet_packed", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)

    @property
    def label(self) -> str:
        """The name of the folder that was packed."""
        return self._index["name"]

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of class folders that were packed."""
        return len(self._index["splits"]["train"]["classes"])

    def load(self, train: bool) -> PackedImages:  # type: ignore[override]
        """Raises UserError if the images are not there, not whole, or not of the format that is wanted."""
        split, size = "train" if train else "val", self._index["size"]
        if size < self.image_size:
            raise UserError(
                f"{self.root} holds images of {size} pixels, but the model takes {self.image_size}: pack the class "
                f"folders with --size {self.image_size} into another folder, or read them with --data ImageFolders"
            )
        if any(own not in (None, packed) for own, packed in zip(self.resizing, (1.0, "bilinear", "center"))):
            raise UserError(
                f"{self.root} holds images resized as in the paper, not with crop_pct {self.crop_pct}, "
                f"{self.interpolation} and {self.crop_mode}: read the class folders with --data ImageFolders, or add "
                "--data.crop_pct 1 --data.interpolation bilinear --data.crop_mode center"
            )
        counts = torch.tensor(list(self._index["splits"][split]["classes"].values()))
        path = records_file(Path(self.root), split)
        expected = int(counts.sum()) * record_size(size)
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise UserError(f"{path} has {found:,} bytes, not {expected:,}: remove {self.root} and pack it again")
        return PackedImages(path, torch.arange(len(counts)).repeat_interleave(counts), size)

    @cached_property
    def _index(self) -> dict[str, Any]:
        return read_index(Path(self.root))


def write_index(folder: Path, content: dict[str, Any]) -> None:
    """Write what ``read_index`` reads. From then on the folder counts as packed."""
    content = {"layershuffle_pack": FORMAT, **content}
    write_whole(folder / INDEX, json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n")


def read_index(folder: Path) -> dict[str, Any]:
    """What a packed folder holds.

    This is the "name" of the folder that was packed, the "size" of the images in pixels, and "splits", which has for
    "train" and "val" the number of images by class, "classes", and the keys and checksums of its "chunks", see
    ``packing``. Raises UserError if it is not there, is damaged, or is of another version.
    """
    path, content = folder / INDEX, None
    if not path.is_file():
        raise UserError(
            f"there is no {path}: layershuffle pack SRC {folder} makes it, and finishes what it has begun when started "
            "again"
        )
    with suppress(UserError):
        content = read_json(path)
    if isinstance(content, dict) and content.get("layershuffle_pack", FORMAT) != FORMAT:
        raise UserError(f"{folder} was packed by another version of this package: pack it again")
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        raise UserError(f"{path} is damaged or has been changed: remove {folder} and pack it again")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
