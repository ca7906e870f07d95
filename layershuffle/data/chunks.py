"""Packs a data set chunk by chunk: what a worker process does, see ``packing``.

The images of each split are divided into chunks of neighbours. A chunk has a key, which stands for the files it was
made from, and the checksum of its pixels. A chunk whose key and pixels are as noted is not packed again, so that
packing continues wherever it was stopped.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torchvision
from torch.utils.data import DataLoader, Dataset

from layershuffle.data.decoding import READING
from layershuffle.data.folders import ImageFolders
from layershuffle.data.hugging_face import HuggingFaceImages
from layershuffle.data.pack_index import FORMAT, INDEX, WHOLE, Note, places, records_file
from layershuffle.data.preprocessing import DecodedImages, whole_shape
from layershuffle.data.splits import SPLITS
from layershuffle.errors import UserError

CHUNK = 256
"""Images that a worker packs at a time, and loses at most when it is killed."""


Packable = ImageFolders | HuggingFaceImages
"""The data sets that can be packed: their images come in the sequence of their classes."""


class Chunk(NamedTuple):
    """Images of one split that lie side by side in its file.

    Attributes:
        split: the split.
        images: their indices.
    """

    split: str
    images: range


class PackedChunk(NamedTuple):
    """What a worker answers of a chunk.

    Attributes:
        name: of the chunk.
        note: its key and its checksum.
        unreadable: a sentence for each image that can't be read.
    """

    name: str
    note: Note
    unreadable: list[str]


class Shapes(Dataset):
    """Height and width in pixels of images, once they are resized and not cropped."""

    def __init__(self, images: DecodedImages, size: int) -> None:
        self.images = images
        self.size = size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[int, int]:
        source: Any = self.images.images
        try:
            return whole_shape(source.file(index), self.size)
        except ValueError:  # Decoding it will say that there is no image.
            return self.size, self.size


class Packing(Dataset):
    """The chunks of a data set that is packed into ``folder``. Reading a chunk packs it unless it is there already.

    Args:
        data: the data set, which a training without packing would use, so that the images are the same.
        folder: where to pack it.
        size: height and width of the packed images, in pixels.
        whole: pack whole pictures, whose shorter side is size, instead of the squares in their centres.
        workers: processes that look at the pictures' sizes, or this one if there are 0.
        channels: how many channels to read images in, one of ``PICTURE_CHANNELS``.

    Attributes:
        source: the folder that holds the data set.
        images: the images of each split.
        shapes: height and width of each packed image of a split, in pixels, int64 [images, 2].
        bytes: the length of the packed file of each split.
        left_out: path and reason of the files that are no images.
        chunks: all chunks, by their names.
        finished: whether the folder is packed already, so that it is only compared.
        read_only: whether a chunk that differs from its note is an error, rather than packed.
        noted: the notes of the chunks that are written, by their names.
    """

    def __init__(
        self,
        data: Packable,
        folder: Path,
        size: int,
        whole: bool = False,
        workers: int = 0,
        channels: int = 3,
    ) -> None:
        self.source = Path(data.root)
        self.folder = folder
        self.size = size
        self.whole = whole
        self.channels = channels
        self.format = WHOLE if whole else FORMAT

        data.image_size = size
        data.model_channels = channels
        data.crop_mode = "whole" if whole else None  # type: ignore[assignment]
        splits = data.splits
        if len(splits) < 2:
            splits = list(SPLITS[:2])  # Reading these says which folder is missing.
        self.images: dict[str, DecodedImages] = {split: data.read(split) for split in splits}
        self.left_out = data.left_out_files if isinstance(data, ImageFolders) else []

        self.shapes = {split: self._shapes(images, workers) for split, images in self.images.items()}
        self.places = {split: places(shapes, channels) for split, shapes in self.shapes.items()}
        self.bytes = {split: int(ends[-1]) for split, ends in self.places.items()}

        self.chunks: dict[str, Chunk] = {}
        for split, images in self.images.items():
            for start in range(0, len(images), CHUNK):
                end = min(start + CHUNK, len(images))
                self.chunks[f"{split} {start}"] = Chunk(split, range(start, end))

        # The index is written last.
        self.finished = (folder / INDEX).exists()
        self.read_only = self.finished
        self.noted: dict[str, Note] = {}

    def _shapes(self, images: DecodedImages, workers: int) -> np.ndarray:
        if not self.whole:
            return np.broadcast_to(np.int64(self.size), (len(images), 2))
        # Where an image lies in the file depends on the shapes of all before it, so they have to be known first.
        loader = DataLoader(Shapes(images, self.size), 1024, num_workers=workers, collate_fn=np.array)
        return np.concatenate(list(loader))

    def missing(self) -> int:
        """The bytes that packing will still take on the disk."""
        missing = 0
        for split, length in self.bytes.items():
            file = records_file(self.folder, split)
            held = _held_bytes(file) if file.exists() else 0
            missing += max(0, length - held)
        return missing

    def __getitem__(self, name: str) -> PackedChunk:
        """Pack a chunk, unless it is there already.

        Raises UserError if it can't be written, or when chunks are only compared, if it differs from its note.
        """
        split, images = self.chunks[name]
        key = self._key(split, images)
        noted_key, noted_checksum = self.noted.get(name, ["", ""])
        if key == noted_key and self._checksum(split, images) == noted_checksum:
            return PackedChunk(name, [noted_key, noted_checksum], [])
        if self.read_only:
            raise self._difference(split, images, same_files=key == noted_key)
        checksum, unreadable = self._write(split, images)
        return PackedChunk(name, [key, checksum], unreadable)

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
                        # Black pixels keep the place of an image that can't be read, so that those after it are right.
                        # The chunk isn't noted, and the next run packs it again.
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
            source: Any = self.images[split].images
            raise UserError(f"{source.samples[image][0]} has another size than its header says")
        return decoded.numpy().tobytes()

    def _key(self, split: str, images: range) -> str:
        """What stands for the files of these images and for how they are read."""
        source: Any = self.images[split].images
        versions = [self.format, READING, self.size, PIL.__version__, torchvision.__version__]
        # Folders that were packed before there were others than RGB stay valid.
        if self.channels != 3:
            versions.append(self.channels)
        key = hashlib.sha256(repr(tuple(versions)).encode())
        for image in images:
            key.update(repr(source.version(image)).encode())
        return key.hexdigest()


def _held_bytes(file: Path) -> int:
    """The room that a file takes on the disk. It gets its full length at once, but room only for what is written."""
    if sys.platform == "win32":  # Windows doesn't tell.
        return file.stat().st_size
    # The system counts in units of 512 bytes, whatever the disk has.
    return file.stat().st_blocks * 512
