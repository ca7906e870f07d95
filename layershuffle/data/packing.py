"""Packs class folders for ``PackedFolders``: in parallel, restartable, checked.

The images of each split are divided into chunks of neighbours. A chunk has a key, which stands for the files it was
made from, and the checksum of its pixels. A chunk whose key and pixels are as noted is not packed again, so that
packing continues wherever it was stopped.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torchvision
from torch.utils.data import DataLoader, Dataset

from layershuffle.data.decoding import READING
from layershuffle.data.folders import SPLITS, ImageFolders
from layershuffle.data.packed import FORMAT, INDEX, WHOLE, places, read_index, records_file, write_index
from layershuffle.data.preprocessing import DecodedImages, whole_shape
from layershuffle.errors import UserError
from layershuffle.files import WriterLock, read_json, write_whole
from layershuffle.plurals import counted

logger = logging.getLogger(__name__)

CHUNK = 256
"""Images that a worker packs at a time, and loses at most when it is killed."""
MOST_UNREADABLE = 20
"""Packing ends once this many images can't be read; if there are fewer, all of them are named first."""
UNFINISHED = "unfinished.json"
"""The key and the checksum of each chunk that is written, until the index takes its place."""


class Shapes(Dataset):
    """Height and width in pixels of class folders' images, once they are resized and not cropped."""

    def __init__(self, images: DecodedImages, size: int) -> None:
        self.images = images
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, int]:
        folders: Any = self.images.images
        return whole_shape(folders.samples[index][0], self.size)


class Packing(Dataset):
    """The chunks of class folders that are packed into ``folder``. Reading a chunk packs it unless it is there already.

    Args:
        source: the folder that holds ``train``, and ``val`` or ``test`` or both.
        folder: where to pack it.
        size: height and width of the packed images, in pixels.
        whole: pack whole pictures, whose shorter side is size, instead of the squares in their centres.
        workers: processes that look at the pictures' sizes, or this one if there are 0.
        test_fraction: the part of each class to pack as the test images, see ``ImageFolders``.
        channels: how many channels to read images in, one of ``PICTURE_CHANNELS``.

    Attributes:
        images: the images of each split.
        shapes: height and width of each packed image of a split, in pixels, int64 [images, 2].
        bytes: the length of the packed file of each split.
        left_out: path and reason of the files that are no images.
        finished: whether the folder is packed already, so that it is only compared.
    """

    def __init__(
        self,
        source: Path,
        folder: Path,
        size: int,
        whole: bool = False,
        workers: int = 0,
        test_fraction: float | None = None,
        channels: int = 3,
    ) -> None:
        self.source = source
        self.folder = folder
        self.size = size
        self.whole = whole
        self.channels = channels
        self.format = WHOLE if whole else FORMAT

        data = ImageFolders(str(source), test_fraction, image_size=size)
        data.model_channels = channels
        data.crop_mode = "whole" if whole else None  # type: ignore[assignment]
        splits = data.splits
        if len(splits) < 2:
            splits = list(SPLITS[:2])  # of which reading says what is missing
        self.images: dict[str, DecodedImages] = {split: data.read(split) for split in splits}
        self.left_out: list[tuple[str, str]] = []
        for files in data.left_out.values():
            self.left_out += files

        self.shapes = {split: self._shapes(images, workers) for split, images in self.images.items()}
        self.places = {split: places(shapes, channels) for split, shapes in self.shapes.items()}
        self.bytes = {split: int(ends[-1]) for split, ends in self.places.items()}

        self.chunks: dict[str, tuple[str, range]] = {}  # the split and the images of each chunk, by name
        for split, images in self.images.items():
            for start in range(0, len(images), CHUNK):
                end = min(start + CHUNK, len(images))
                self.chunks[f"{split} {start}"] = (split, range(start, end))

        self.finished = (folder / INDEX).exists()
        self.read_only = self.finished
        self.noted: dict[str, list[str]] = {}  # key and checksum of each chunk that is written, by its name in chunks

    def _shapes(self, images: DecodedImages, workers: int) -> np.ndarray:
        if not self.whole:
            return np.broadcast_to(np.int64(self.size), (len(images), 2))
        loader = DataLoader(Shapes(images, self.size), 1024, num_workers=workers, collate_fn=np.array)
        return np.concatenate(list(loader))

    def missing(self) -> int:
        """The bytes that packing will still take on the disk."""
        missing = 0
        for split, length in self.bytes.items():
            file = records_file(self.folder, split)
            held = file.stat().st_blocks * 512 if file.exists() else 0
            missing += max(0, length - held)
        return missing

    def __getitem__(self, name: str) -> tuple[str, list[str], list[str]]:
        """Pack a chunk. Returns its name, its key and checksum, and a sentence for each image that can't be read.

        Raises UserError if it can't be written, or when chunks are only compared, if it differs from its note.
        """
        split, images = self.chunks[name]
        key = self._key(split, images)
        noted_key, noted_checksum = self.noted.get(name, ["", ""])
        if key == noted_key and self._checksum(split, images) == noted_checksum:
            return name, [noted_key, noted_checksum], []
        if self.read_only:
            raise self._difference(split, images, same_files=key == noted_key)
        checksum, unreadable = self._write(split, images)
        return name, [key, checksum], unreadable

    def _checksum(self, split: str, images: range) -> str | None:
        """The checksum of these images' pixels in the packed file, or None if that can't be read."""
        start, end = self.places[split][[images.start, images.stop]].tolist()
        try:
            with records_file(self.folder, split).open("rb") as file:
                file.seek(start)
                return hashlib.sha256(file.read(end - start)).hexdigest()
        except OSError:
            return None

    def _difference(self, split: str, images: range, same_files: bool) -> UserError:
        """The error that these images aren't what was packed, though perhaps of the same files."""
        if same_files:
            path = records_file(self.folder, split)
            remedy = "remove the folder and pack it again" if self.finished else "the same command packs them again"
            return UserError(f"images {images.start} to {images.stop - 1} of {path} are not what was written: {remedy}")
        remedy = "pack it into another folder" if self.finished else "the same command packs what has changed"
        return UserError(
            f"{self.source}, or the version of Pillow, torchvision or this package, is not what {self.folder} was "
            f"packed from: {remedy}"
        )

    def _write(self, split: str, images: range) -> tuple[str, list[str]]:
        """Decode and write these images; returns their checksum, and a sentence for each that can't be read."""
        path = records_file(self.folder, split)
        checksum = hashlib.sha256()
        unreadable = []
        try:
            with path.open("r+b") as file:
                file.seek(int(self.places[split][images.start]))
                for image in images:
                    try:
                        pixels = self._pixels(split, image)
                    except UserError as error:
                        unreadable.append(str(error))
                        height, width = self.shapes[split][image].tolist()
                        pixels = bytes(self.channels * height * width)
                    checksum.update(pixels)
                    file.write(pixels)
        except OSError as error:
            raise UserError(
                f"{path} could not be written ({error.strerror}): once that is mended, the same command continues"
            ) from error
        return checksum.hexdigest(), unreadable

    def _pixels(self, split: str, image: int) -> bytes:
        decoded, _label = self.images[split].decode(image)
        height, width = self.shapes[split][image].tolist()
        if decoded.shape != (self.channels, height, width):
            folders: Any = self.images[split].images
            raise UserError(f"{folders.samples[image][0]} has another size than its header says")
        return decoded.numpy().tobytes()

    def _key(self, split: str, images: range) -> str:
        """What stands for the files of these images and for how they are read."""
        folders: Any = self.images[split].images
        versions = [self.format, READING, self.size, PIL.__version__, torchvision.__version__]
        if self.channels != 3:  # Folders that were packed before there were others stay valid.
            versions.append(self.channels)
        key = hashlib.sha256(repr(tuple(versions)).encode())
        for path, label in folders.samples[images.start : images.stop]:
            version = (-1, -1)  # of a file that is gone, which decoding it will report
            with suppress(OSError):
                stat = os.stat(path)
                version = (stat.st_size, stat.st_mtime_ns)
            key.update(repr((os.path.relpath(path, folders.root), label, *version)).encode())
        return key.hexdigest()


def pack(packing: Packing, workers: int) -> Iterator[tuple[str, int]]:
    """Pack what is missing, read all of it again, and write the index. A finished folder is only read and compared.

    ``workers`` processes do the work, or this one if there are 0. Yields "packing" or "checking" and the number of
    images that this was done with. Raises UserError if anything goes wrong; the next run continues from there.
    """
    if packing.finished:
        yield from _compare(packing, workers)
    else:
        yield from _pack(packing, workers)
    leftovers = packing.folder.glob(".*.json.*")  # of write_whole, when it was killed
    for path in (packing.folder / UNFINISHED, *leftovers):
        path.unlink(missing_ok=True)


def _compare(packing: Packing, workers: int) -> Iterator[tuple[str, int]]:
    """Read a finished folder, and compare it with the index."""
    index = read_index(packing.folder)
    whole = any("heights" in content for content in index["splits"].values())
    present = _kind(index["size"], whole, index.get("channels", 3))
    asked_for = _kind(packing.size, packing.whole, packing.channels)
    if present != asked_for:
        raise UserError(f"{packing.folder} holds {present}: pack {asked_for} into another folder")

    noted = {}
    for split, content in index["splits"].items():
        for number, key_and_checksum in enumerate(content["chunks"]):
            noted[f"{split} {number * CHUNK}"] = key_and_checksum
    # If there are more or fewer chunks than before, none counts as the one that was packed.
    if noted.keys() == packing.chunks.keys():
        packing.noted = noted
    yield from _go_through(packing, workers, "checking")


def _kind(size: int, whole: bool, channels: int) -> str:
    return f"{'whole pictures' if whole else 'images'} of {size} pixels and {counted(channels, 'channel')}"


def _pack(packing: Packing, workers: int) -> Iterator[tuple[str, int]]:
    """Pack what is missing, read all of it again, and write the index."""
    folder = packing.folder
    unfinished = folder / UNFINISHED
    with WriterLock(folder):
        if unfinished.exists():
            packing.noted = read_json(unfinished)
        for split, length in packing.bytes.items():
            path = records_file(folder, split)
            path.touch()
            os.truncate(path, length)
        yield from _go_through(packing, workers, "packing")
        packing.read_only = True
        yield from _go_through(packing, workers, "checking")

        # The index says that the folder is packed, so the pixels must be on the disk before.
        for split in packing.images:
            with records_file(folder, split).open("rb") as file:
                os.fsync(file.fileno())
        splits = {split: _index_of(packing, split) for split in packing.images}
        content: dict[str, Any] = {"name": packing.source.absolute().name, "size": packing.size, "splits": splits}
        if packing.channels != 3:
            content["channels"] = packing.channels
        write_index(folder, packing.format, content)


def _index_of(packing: Packing, split: str) -> dict[str, Any]:
    """What the index says of a split, see ``read_index``."""
    folders: Any = packing.images[split].images
    content: dict[str, Any] = {
        "classes": {folders.classes[label]: len(list(images)) for label, images in groupby(folders.targets)},
        "chunks": [packing.noted[name] for name, (of_split, _) in packing.chunks.items() if of_split == split],
    }
    if packing.whole:
        heights, widths = packing.shapes[split].T.tolist()
        content["heights"] = heights
        content["widths"] = widths
    return content


def _go_through(packing: Packing, workers: int, step: str) -> Iterator[tuple[str, int]]:
    """Read every chunk, in any sequence, and note those that were packed. Unreadable images are named in the log."""
    unreadable = 0
    loader = DataLoader(packing, None, sampler=list(packing.chunks), num_workers=workers, in_order=False)
    try:
        for name, noted, sentences in loader:
            for sentence in sentences:
                logger.warning(sentence)
            unreadable += len(sentences)
            if unreadable >= MOST_UNREADABLE:
                break
            if not sentences and packing.noted.get(name) != noted:
                packing.noted[name] = noted
                write_whole(packing.folder / UNFINISHED, json.dumps(packing.noted))
            yield step, len(packing.chunks[name][1])
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that was packing has been killed, perhaps because memory ran out: the same command continues, "
            "with fewer --workers if need be"
        ) from error
    if unreadable:
        count = counted(unreadable, "image")
        if unreadable >= MOST_UNREADABLE:
            count += " or more"
        raise UserError(
            f"{count} of {packing.source} can't be read: replace or remove those named above, then the same command "
            "continues"
        )
