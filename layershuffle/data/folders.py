"""Images in class folders, such as ImageNet-1k: decoded when they are read, or packed before.

What ``layershuffle pack`` makes holds ``train.uint8`` and, of ``val.uint8`` and ``test.uint8``, those that there are.
They are the images [3, size, size] one after the other in the sequence of their class folders. ``index.json`` has the
number of images of each class. Whole pictures are [3, height, width], of which the shorter one is size; then the index
also has all heights and widths.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from layershuffle.data.module import ImageData
from layershuffle.data.preprocessing import DecodedImages, open_image, why_left_out
from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole

INDEX = "index.json"
FORMAT, WHOLE = 1, 2
"""The formats of folders with squares and of those with whole pictures."""
MAX_INDEX_BYTES = 1 << 30
"""A whole picture takes about 20 bytes of the index."""

SPLITS = ("train", "val", "test")
"""The folders that a data set can have."""


class ImageFolders(ImageData):
    """``ROOT/train/CLASS/*``, and test images in ``ROOT/test/CLASS/*`` or, without that, in ``ROOT/val/CLASS/*``.

    The checkpoint is selected on ``val`` if there is a ``test`` too. Otherwise a part of the training images is held
    out for that. Folders and files whose names begin with a dot are left out, and so are files that are no images.

    Args:
        root: the folder that holds ``train`` and the others.
        kwargs: the arguments of ``ImageData``. With val_fraction 0, the test images select the checkpoint in any case.
    """

    def __init__(self, root: str = "data/imagenet", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.left_out: dict[str, list[tuple[str, str]]] = {}  # path and reason of files that are no images, by split

    @property
    def label(self) -> str:
        return Path(self.root).name

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of class folders in ``ROOT/train``. Raises UserError if there is just one."""
        names = self.class_names
        if len(names) == 1:
            raise UserError(
                f"{self.root} has images of one class only, {names[0]}: a model learns to tell several apart"
            )
        return len(names)

    @property
    def class_names(self) -> list[str]:
        """The names of the class folders in ``ROOT/train``."""
        return self._classes("train")

    @property
    def splits(self) -> list[str]:
        """Those of ``SPLITS`` that there are. ImageNet's ``test`` is not among them, as it has no class folders."""
        return [split for split in SPLITS if class_folders(Path(self.root) / split)]

    @property
    def sources(self) -> dict[str, str]:
        """Which of ``splits`` the images come from: for training, for testing, and if not held out, for validation."""
        found = {"training": "train", "testing": "test" if "test" in self.splits else "val"}
        separate = self.val_fraction and {"val", "test"} <= {*self.splits}
        return found | ({"validation": "val"} if separate else {})

    def load(self, train: bool) -> Dataset:
        """Raises UserError if a class folder is empty or the splits have different classes."""
        return self.read(self.sources["training" if train else "testing"])

    def load_validation(self) -> Dataset | None:
        split = self.sources.get("validation")
        return self.read(split) if split else None

    def read(self, split: str) -> DecodedImages:
        """The images of one of ``splits``. Raises UserError if there are none, or other classes than in ``train``."""
        train, here = self._classes("train"), self._classes(split)
        if train != here:
            lacks = [f"lacks {_listed(sorted({*train} - {*here}))}"] if {*train} - {*here} else []
            lacks += [f"has {_listed(sorted({*here} - {*train}))} besides"] if {*here} - {*train} else []
            raise UserError(
                f"{self.root}/{split} {' and '.join(lacks)}: its class folders must be those of {self.root}/train"
            )
        folder = os.path.join(self.root, split)
        left_out = self.left_out[split] = []

        def is_image(path: str) -> bool:
            why = why_left_out(path, folder)
            if why:
                left_out.append((path, why))
            return not why

        try:
            images = ClassFolders(folder, loader=open_image, is_valid_file=is_image)
        except FileNotFoundError as error:
            raise UserError(f"{folder}: {error}") from error
        return DecodedImages(images, self.image_size, self.unreadable, *self.resizing)

    def describe(self) -> str:
        """What ``ImageData.describe`` says, where the images come from, and which files are left out, and why."""
        used = [f"{self.root}/{split} for {use}" for use, split in self.sources.items()]
        unused = [f"{self.root}/{split}" for split in SPLITS if split not in self.sources.values()]
        unused = [folder for folder in unused if os.path.isdir(folder)]
        note = f"; {', '.join(unused)} is not used" if unused else ""
        left_out = [file for files in self.left_out.values() for file in files]
        return "\n".join([super().describe(), ", ".join(used) + note, *describe_left_out(left_out)])

    def _classes(self, split: str) -> list[str]:
        folder = Path(self.root) / split
        if found := class_folders(folder):
            return found
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}: name the one that holds {' and '.join(SPLITS[:2])}")
        raise UserError(
            f"{folder} has no class folders: put the images of each class into a folder of its own there, "
            f"as in {folder}/n01440764/*.JPEG"
        )


class ClassFolders(ImageFolder):
    """torchvision's ImageFolder, but hidden folders are no classes."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = class_folders(directory)
        return names, {name: label for label, name in enumerate(names)}


def class_folders(folder: str | Path) -> list[str]:
    """The names of the folders in ``folder``, in alphabetical order, without those that begin with a dot."""
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def describe_left_out(files: Sequence[tuple[str, str]], most: int = 10) -> list[str]:
    """Lines that name the first ``most`` of these files, each with the reason, and count the others."""
    if not files:
        return []
    more = [f"  and {len(files) - most:,} more"] if len(files) > most else []
    return [f"files left out: {len(files):,}", *(f"  {path}: {why}" for path, why in files[:most]), *more]


def _listed(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def places(shapes: np.ndarray) -> np.ndarray:
    """Where the images of these shapes, int64 [images, 2], begin in their file, in bytes; the last entry is its end."""
    return np.concatenate([[0], (3 * shapes.prod(axis=1)).cumsum()])


def records_file(folder: Path, split: str) -> Path:
    """The file with the images of one of ``SPLITS``."""
    return folder / f"{split}.uint8"


class PackedImages(Dataset):
    """One split of a packed folder: a file of uint8 images [3, height, width], read as squares or in part.

    Args:
        path: the file.
        labels: int64 [images].
        shapes: height and width of the images, int64 [images, 2], of which the shorter one is size.
        size: height and width of the squares in their centres, in pixels.
    """

    def __init__(self, path: Path, labels: Tensor, shapes: np.ndarray, size: int) -> None:
        self.path, self.labels, self.shapes, self.size = path, labels, shapes, size
        self.places = places(shapes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch of squares, uint8 [batch, 3, size, size]. Raises UserError as ``regions`` does."""
        images = np.empty((len(indices), 3, self.size, self.size), np.uint8)
        corners = ((self.shapes[indices] - self.size) / 2).round().astype(int).tolist()  # as torchvision rounds
        boxes = [(top, left, self.size, self.size) for top, left in corners]
        for at, region in enumerate(self._read(indices, boxes, images)):
            if region.base is not images:
                images[at] = region
        return torch.from_numpy(images), self.labels[indices]

    def regions(self, indices: list[int], boxes: Sequence[tuple[int, int, int, int]]) -> list[Tensor]:
        """A part of each image, uint8 [3, height, width], of which only the rows are read.

        Args:
            indices: the images.
            boxes: top, left, height and width of the parts, in pixels.

        Raises:
            UserError: if the file is gone or has become shorter.
        """
        return [torch.from_numpy(region) for region in self._read(indices, boxes)]

    def _read(
        self, indices: list[int], boxes: Sequence[tuple[int, int, int, int]], into: np.ndarray | None = None
    ) -> list[np.ndarray]:
        """The parts, of which those that are as wide as their image are read straight ``into`` an array of squares."""
        # The file is read, not mapped: if it were cut short or its disk failed, a map would kill the process.
        wholes, starts = self.shapes[indices].tolist(), self.places[indices].tolist()
        spans = []  # the first byte of each channel's rows, and their bytes; or of all channels together
        for (whole_height, whole_width), start, (top, _, height, _) in zip(wholes, starts, boxes):
            first, channel, length = start + top * whole_width, whole_height * whole_width, height * whole_width
            together = height == whole_height
            spans.append([(first, 3 * length)] if together else [(first + c * channel, length) for c in range(3)])
        found = []
        try:
            with self.path.open("rb", buffering=0) as file:
                for place, length in (span for part in spans for span in part):
                    # A disk that knows the whole batch can read it in the best sequence.
                    os.posix_fadvise(file.fileno(), place, length, os.POSIX_FADV_WILLNEED)
                for at, (_, left, height, width) in enumerate(boxes):
                    fits = into is not None and width == wholes[at][1]
                    rows = into[at] if fits else np.empty((3, height, wholes[at][1]), np.uint8)  # type: ignore[index]
                    for part, (place, length) in zip([rows] if len(spans[at]) == 1 else rows, spans[at]):
                        if os.preadv(file.fileno(), [part], place) != length:
                            raise UserError(f"{self.path} ends before its image {indices[at]}: pack it again")
                    found.append(rows if fits else rows[..., left : left + width])
        except OSError as error:
            raise UserError(f"{self.path} could not be read: {error.strerror}") from error
        return found


class PackedFolders(ImageFolders):
    """Class folders packed by ``layershuffle pack``: bit for bit the images and labels of ``ImageFolders``.

    If they were packed larger than the model takes, they are resized on the device, or cropped at random. Of pictures
    that were packed whole, random crops show all, and everything else the centre, which is what is packed otherwise.

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
    def class_names(self) -> list[str]:
        """The names of the class folders that were packed."""
        return list(self._index["splits"]["train"]["classes"])

    @property
    def splits(self) -> list[str]:
        """The splits that were packed."""
        return list(self._index["splits"])

    def read(self, split: str) -> PackedImages:  # type: ignore[override]
        """Raises UserError if the images are not there, not whole, or not of the format that is wanted."""
        size = self._index["size"]
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
        total, packed = int(counts.sum()), self._index["splits"][split]
        shapes = np.broadcast_to(np.int64(size), (total, 2))
        if "heights" in packed:
            shapes = np.array([packed["heights"], packed["widths"]]).T
        expected = int(places(shapes)[-1])
        found = path.stat().st_size if path.is_file() else 0
        if found != expected:
            raise UserError(f"{path} has {found:,} bytes, not {expected:,}: remove {self.root} and pack it again")
        return PackedImages(path, torch.arange(len(counts)).repeat_interleave(counts), shapes, size)

    @cached_property
    def _index(self) -> dict[str, Any]:
        return read_index(Path(self.root))


def write_index(folder: Path, format: int, content: dict[str, Any]) -> None:
    """Write what ``read_index`` reads, and ``FORMAT`` or ``WHOLE``. From then on the folder counts as packed."""
    content = {"layershuffle_pack": format, **content}
    write_whole(folder / INDEX, json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n")


def read_index(folder: Path) -> dict[str, Any]:
    """What a packed folder holds.

    This is the "name" of the folder that was packed, the "size" of the images in pixels, and "splits", which has for
    each of its ``SPLITS`` the number of images by class, "classes", the keys and checksums of its "chunks", see
    ``packing``, and for whole pictures their "heights" and "widths" in pixels. Raises UserError if it is not there, is
    damaged, or is of another version.
    """
    path, content = folder / INDEX, None
    if not path.is_file():
        raise UserError(
            f"there is no {path}: layershuffle pack SRC {folder} makes it, and finishes what it has begun when started "
            "again"
        )
    with suppress(UserError):
        content = read_json(path, most=MAX_INDEX_BYTES)
    if isinstance(content, dict) and content.get("layershuffle_pack", FORMAT) not in (FORMAT, WHOLE):
        raise UserError(f"{folder} was packed by another version of this package: pack it again")
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        raise UserError(f"{path} is damaged or has been changed: remove {folder} and pack it again")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
