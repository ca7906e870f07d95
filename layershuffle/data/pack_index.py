"""What a packed folder says of itself: its index, and where each image lies in its files.

``index.json`` has the name of the folder that was packed, the size of its images, the number of images of each class,
and the number of channels unless it is 3. Of whole pictures it also has all heights and widths. It is written last, so
that a folder with an index is packed entirely.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole

INDEX = "index.json"
FORMAT = 1
"""The format of folders with squares."""
WHOLE = 2
"""The format of folders with whole pictures."""
MAX_INDEX_BYTES = 1 << 30
"""A whole picture takes about 20 bytes of the index."""

Note = list[str]
"""The key and the checksum of a chunk that is packed, see ``chunks``."""


@dataclass(frozen=True)
class PackedSplit:
    """One split of a packed folder.

    Attributes:
        classes: the number of images of each class, by its name, in the sequence of the labels.
        chunks: the notes of its chunks, in the sequence of their images.
        heights: of each whole picture, in pixels; None if squares were packed.
        widths: the same.
    """

    classes: dict[str, int]
    chunks: list[Note] = field(default_factory=list)
    heights: list[int] | None = None
    widths: list[int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What the index holds of the split."""
        content: dict[str, Any] = {"classes": self.classes, "chunks": self.chunks}
        if self.heights is not None:
            content["heights"] = self.heights
            content["widths"] = self.widths
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` returned."""
        return cls(content["classes"], content.get("chunks", []), content.get("heights"), content.get("widths"))


@dataclass(frozen=True)
class PackIndex:
    """What a packed folder holds.

    Attributes:
        name: of the folder that was packed.
        size: height and width of the squares, or the length of the shorter side of whole pictures, in pixels.
        splits: its splits, by those of ``SPLITS`` that there are.
        channels: how many channels the images have.
    """

    name: str
    size: int
    splits: dict[str, PackedSplit]
    channels: int = 3

    @property
    def is_whole(self) -> bool:
        """Whether whole pictures were packed."""
        return any(split.heights is not None for split in self.splits.values())

    def shapes(self, split: str) -> np.ndarray:
        """Height and width of each image of a split, in pixels, int64 [images, 2]."""
        packed = self.splits[split]
        if packed.heights is None:
            # Squares take no memory each, of which ImageNet has 1.3 million.
            return np.broadcast_to(np.int64(self.size), (sum(packed.classes.values()), 2))
        return np.array([packed.heights, packed.widths]).T

    def to_dict(self) -> dict[str, Any]:
        """What the file holds, besides its format and its checksum."""
        splits = {name: split.to_dict() for name, split in self.splits.items()}
        content: dict[str, Any] = {"name": self.name, "size": self.size, "splits": splits}
        # Packed folders of RGB images are from before there were others.
        if self.channels != 3:
            content["channels"] = self.channels
        return content

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Read what ``to_dict`` returned."""
        splits = {name: PackedSplit.from_dict(split) for name, split in content["splits"].items()}
        return cls(content["name"], content["size"], splits, content.get("channels", 3))


def write_index(folder: Path, index: PackIndex) -> None:
    """Write the index of a folder. From then on the folder counts as packed."""
    content = {"layershuffle_pack": WHOLE if index.is_whole else FORMAT, **index.to_dict()}
    write_whole(folder / INDEX, json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n")


def read_index(folder: Path) -> PackIndex:
    """Read the index of a packed folder; raises UserError if it isn't there, is damaged, or of another version."""
    path = folder / INDEX
    if not path.is_file():
        raise UserError(
            f"there is no {path}: layershuffle pack SRC {folder} makes it, and finishes what it has begun when started "
            "again"
        )
    # A file that isn't JSON gets the error below, which says what to do.
    content = None
    with suppress(UserError):
        content = read_json(path, most=MAX_INDEX_BYTES)

    # The version comes first: what another version wrote may have another checksum, and is not damaged.
    if isinstance(content, dict) and content.get("layershuffle_pack", FORMAT) not in (FORMAT, WHOLE):
        raise UserError(f"{folder} was packed by another version of this package: pack it again")
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest(content):
        raise UserError(f"{path} is damaged or has been changed: remove {folder} and pack it again")
    return PackIndex.from_dict(content)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def places(shapes: np.ndarray, channels: int) -> np.ndarray:
    """Where the images of these shapes, int64 [images, 2], begin in their file, in bytes; the last entry is its end."""
    return np.concatenate([[0], (channels * shapes.prod(axis=1)).cumsum()])


def records_file(folder: Path, split: str) -> Path:
    """The file with the images of one of ``SPLITS``: uint8 [channels, height, width], one after the other."""
    return folder / f"{split}.uint8"
