"""Class folders that ``layershuffle pack`` has packed: one file of uint8 images for each split, and an index.

What ``layershuffle pack`` makes holds ``train.uint8`` and, of ``val.uint8`` and ``test.uint8``, those that there are.
They are the images [channels, size, size] one after the other in the sequence of their class folders. Whole pictures
are [channels, height, width], of which the shorter one is size.
"""

import itertools
import os
import sys
from collections.abc import Sequence
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from layershuffle.data.folders import ImageFolders
from layershuffle.data.pack_index import PackIndex, places, read_index, records_file
from layershuffle.data.preprocessing import Resizing
from layershuffle.errors import UserError

PAPERS = Resizing(crop_pct=1.0, interpolation="bilinear", crop_mode="center")
"""How packed images were resized: as in the LayerShuffle paper."""

Box = tuple[int, int, int, int]
"""A part of an image: top, left, height and width, in pixels."""


class PackedImages(Dataset):
    """One split of a packed folder: a file of uint8 images [channels, height, width], read as squares or in part.

    Args:
        path: the file.
        labels: int64 [images].
        shapes: height and width of the images, int64 [images, 2], of which the shorter one is size.
        size: height and width of the squares in their centres, in pixels.
        channels: how many channels the images have.
    """

    def __init__(self, path: Path, labels: Tensor, shapes: np.ndarray, size: int, channels: int = 3) -> None:
        self.path = path
        self.labels = labels
        self.shapes = shapes
        self.size = size
        self.channels = channels
        self.places = places(shapes, channels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch of squares, uint8 [batch, channels, size, size]. Raises UserError as ``regions`` does."""
        images = np.empty((len(indices), self.channels, self.size, self.size), np.uint8)
        # Rounded as torchvision's centre crop does it: whole pictures have the same squares as those packed as squares.
        corners = ((self.shapes[indices] - self.size) / 2).round().astype(int).tolist()
        boxes = [(top, left, self.size, self.size) for top, left in corners]
        # What is as wide as the square was read into its place, and only the middle of wider images is copied there.
        for place, region in enumerate(self._read(indices, boxes, into=images)):
            if region.base is not images:
                images[place] = region
        return torch.from_numpy(images), self.labels[indices]

    def regions(self, indices: list[int], boxes: Sequence[Box]) -> list[Tensor]:
        """A part of each image, uint8 [channels, height, width], of which only the rows are read.

        Args:
            indices: the images.
            boxes: top, left, height and width of the parts, in pixels.

        Raises:
            UserError: if the file is gone or has become shorter.
        """
        return [torch.from_numpy(region) for region in self._read(indices, boxes)]

    def _read(self, indices: list[int], boxes: Sequence[Box], into: np.ndarray | None = None) -> list[np.ndarray]:
        """The parts, of which those that are as wide as their image are read straight ``into`` an array of squares."""
        spans = [self._spans(index, box) for index, box in zip(indices, boxes)]
        regions = []
        try:
            # The file is read, not mapped: if it were cut short or its disk failed, a map would kill the process.
            with self.path.open("rb", buffering=0) as file:
                # A disk that knows the whole batch can read it in the best sequence.
                if sys.platform == "linux":
                    for start, length in itertools.chain.from_iterable(spans):
                        os.posix_fadvise(file.fileno(), start, length, os.POSIX_FADV_WILLNEED)

                for place, (index, box) in enumerate(zip(indices, boxes)):
                    _top, left, height, width = box
                    # Rows lie whole in the file. Reading them whole is faster than many small reads.
                    whole_width = int(self.shapes[index][1])
                    if into is not None and width == whole_width:
                        rows = into[place]
                        region = rows
                    else:
                        rows = np.empty((self.channels, height, whole_width), np.uint8)
                        region = rows[..., left : left + width]
                    self._read_rows(file, index, spans[place], rows)
                    regions.append(region)
        except OSError as error:
            raise UserError(f"{self.path} could not be read: {error.strerror}") from error
        return regions

    def _spans(self, index: int, box: Box) -> list[tuple[int, int]]:
        """The first byte and the number of bytes of each channel's rows; those of all channels where they adjoin."""
        top, _left, height, _width = box
        whole_height, whole_width = self.shapes[index].tolist()
        start = int(self.places[index]) + top * whole_width
        length = height * whole_width
        if height == whole_height:
            return [(start, self.channels * length)]
        bytes_of_channel = whole_height * whole_width
        return [(start + channel * bytes_of_channel, length) for channel in range(self.channels)]

    def _read_rows(self, file: FileIO, index: int, spans: Sequence[tuple[int, int]], rows: np.ndarray) -> None:
        """Read the spans of an image into rows, uint8 [channels, height, width]."""
        # A single span holds all channels, and otherwise each channel has one.
        parts = [rows] if len(spans) == 1 else rows
        for part, (start, length) in zip(parts, spans):
            if read_at(file, start, part) != length:
                raise UserError(f"{self.path} ends before its image {index}: pack it again")


def read_at(file: FileIO, start: int, rows: np.ndarray) -> int:
    """Fill rows with what the file has from the byte ``start`` on; returns how many bytes there were."""
    file.seek(start)
    return file.readinto(rows.data)


class PackedFolders(ImageFolders):
    """Class folders packed by ``layershuffle pack``: bit for bit the images and labels of ``ImageFolders``.

    If they were packed larger than the model takes, they are resized on the device, or cropped at random. Of pictures
    that were packed whole, random crops show all, and everything else the centre, which is what is packed otherwise.

    Args:
        root: the packed folder.
        kwargs: further arguments of ``ImageData``.
    """

    def __init__(self, root: str = "data/imagenet_packed", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        if self.test_fraction is not None:
            raise UserError("packed folders have test images already: leave test_fraction out")

    @property
    def label(self) -> str:
        """The name of the folder that was packed."""
        return self._index.name

    @property
    def class_names(self) -> list[str]:
        """The names of the class folders that were packed."""
        return list(self._index.splits["train"].classes)

    @property
    def splits(self) -> list[str]:
        """The splits that were packed."""
        return list(self._index.splits)

    def read(self, split: str) -> PackedImages:  # type: ignore[override]
        """The images of one of ``splits``.

        Raises UserError if they are not there, not whole, too small for the model, or not resized as it takes them.
        """
        index = self._index
        size = index.size
        if size < self.image_size:
            raise UserError(
                f"{self.root} holds images of {size} pixels, but the model takes {self.image_size}: pack the class "
                f"folders with --size {self.image_size} into another folder, or read them with --data ImageFolders"
            )
        if self.resizing.or_else(PAPERS) != PAPERS:
            raise UserError(
                f"{self.root} holds images resized as in the paper, not with crop_pct {self.crop_pct}, "
                f"{self.interpolation} and {self.crop_mode}: read the class folders with --data ImageFolders, or add "
                "--data.crop_pct 1 --data.interpolation bilinear --data.crop_mode center"
            )

        # A file of another length was cut short or changed since, and would give other images without a word.
        shapes = index.shapes(split)
        path = records_file(Path(self.root), split)
        expected = int(places(shapes, index.channels)[-1])
        present = path.stat().st_size if path.is_file() else 0
        if present != expected:
            raise UserError(f"{path} has {present:,} bytes, not {expected:,}: remove {self.root} and pack it again")

        # Images of a class are neighbours, in the sequence of the class folders.
        counts = torch.tensor(list(index.splits[split].classes.values()))
        labels = torch.arange(len(counts)).repeat_interleave(counts)
        return PackedImages(path, labels, shapes, size, index.channels)

    @cached_property
    def _index(self) -> PackIndex:
        return read_index(Path(self.root))
