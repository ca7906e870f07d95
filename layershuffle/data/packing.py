"""Packs class folders for ``PackedFolders``: in parallel, restartable, checked.

The images of each split are divided into chunks of neighbours. A chunk has a key, which stands for the files it was
made from, and the checksum of its pixels. A chunk whose key and pixels are as noted is not packed again, so that
packing continues wherever it was stopped.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torchvision
from torch.utils.data import DataLoader, Dataset

from layershuffle.data.folders import (
    FORMAT,
    INDEX,
    SPLITS,
    WHOLE,
    ImageFolders,
    places,
    read_index,
    records_file,
    write_index,
)
from layershuffle.data.preprocessing import READING, DecodedImages, whole_shape
from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole

CHUNK = 256
"""Images that a worker packs at a time, and loses at most when it is killed."""
MOST_UNREADABLE = 20
"""Packing ends once this many images can't be read; if there are fewer, all of them are named first."""
UNFINISHED = "unfinished.json"
"""The key and the checksum of each chunk that is written, until the index takes its place."""
LOCK = "packing.lock"


class Shapes(Dataset):
    """Height and width in pixels of class folders' images, once they are resized and not cropped."""

    def __init__(self, images: DecodedImages, size: int) -> None:
        self.images, self.size = images, size

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

    Attributes:
        images: the images of each split.
        shapes: height and width of each packed image of a split, in pixels, int64 [images, 2].
        bytes: the length of the packed file of each split.
        left_out: path and reason of the files that are no images.
        finished: whether the folder is packed already, so that it is only compared.
    """

    def __init__(self, source: Path, folder: Path, size: int, whole: bool = False, workers: int = 0) -> None:
        data = ImageFolders(str(source), image_size=size)
        data.crop_mode = "whole" if whole else None  # type: ignore[assignment]
        splits = data.splits if data.splits[1:] else SPLITS[:2]  # of which reading says what is missing
        self.images: dict[str, DecodedImages] = {split: data.read(split) for split in splits}
        self.left_out = [file for files in data.left_out.values() for file in files]
        self.source, self.folder, self.size, self.whole = source, folder, size, whole
        self.format = WHOLE if whole else FORMAT
        self.shapes = {split: self._shapes(images, workers) for split, images in self.images.items()}
        self.places = {split: places(shapes) for split, shapes in self.shapes.items()}
        self.bytes = {split: int(ends[-1]) for split, ends in self.places.items()}
        self.chunks = {
            f"{split} {start}": (split, range(start, min(start + CHUNK, len(images))))
            for split, images in self.images.items()
            for start in range(0, len(images), CHUNK)
        }
        self.finished = self.read_only = (folder / INDEX).exists()
        self.noted: dict[str, list[str]] = {}  # key and checksum of each chunk that is written, by its name in chunks

    def _shapes(self, images: DecodedImages, workers: int) -> np.ndarray:
        if not self.whole:
            return np.broadcast_to(np.int64(self.size), (len(images), 2))
        loader = DataLoader(Shapes(images, self.size), 1024, num_workers=workers, collate_fn=np.array)
        return np.concatenate(list(loader))

    def missing(self) -> int:
        """The bytes that packing will still take on the disk."""
        files = {split: records_file(self.folder, split) for split in self.bytes}
        held = {split: file.stat().st_blocks * 512 if file.exists() else 0 for split, file in files.items()}
        return sum(max(0, self.bytes[split] - held[split]) for split in self.bytes)

    def __getitem__(self, name: str) -> tuple[str, list[str], list[str]]:
        """Pack a chunk. Returns its name, its key and checksum, and a sentence for each image that can't be read.

        Raises UserError if it can't be written, or when chunks are only compared, if it differs from its note.
        """
        split, images = self.chunks[name]
        path, key = records_file(self.folder, split), self._key(split, images)
        start, end = self.places[split][[images.start, images.stop]].tolist()
        noted = self.noted.get(name, ["", ""])
        if key == noted[0]:
            with suppress(OSError), path.open("rb") as file:
                file.seek(start)
                if hashlib.sha256(file.read(end - start)).hexdigest() == noted[1]:
                    return name, noted, []
        if self.read_only and key == noted[0]:
            remedy = "remove the folder and pack it again" if self.finished else "the same command packs them again"
            raise UserError(f"images {images.start} to {images.stop - 1} of {path} are not what was written: {remedy}")
        if self.read_only:
            remedy = "pack it into another folder" if self.finished else "the same command packs what has changed"
            raise UserError(
                f"{self.source}, or the version of Pillow, torchvision or this package, is not what {self.folder} was "
                f"packed from: {remedy}"
            )
        digest, unreadable = hashlib.sha256(), []
        try:
            with path.open("r+b") as file:
                file.seek(start)
                for image in images:
                    height, width = self.shapes[split][image].tolist()
                    try:
                        decoded = self.images[split].decode(image)[0]
                        if decoded.shape != (3, height, width):
                            folders: Any = self.images[split].images
                            raise UserError(f"{folders.samples[image][0]} has another size than its header says")
                        pixels = decoded.numpy().tobytes()
                    except UserError as error:
                        unreadable.append(str(error))
                        pixels = bytes(3 * height * width)
                    digest.update(pixels)
                    file.write(pixels)
        except OSError as error:
            raise UserError(
                f"{path} could not be written ({error.strerror}): once that is mended, the same command continues"
            ) from error
        return name, [key, digest.hexdigest()], unreadable

    def _key(self, split: str, images: range) -> str:
        folders: Any = self.images[split].images
        key = hashlib.sha256(repr((self.format, READING, self.size, PIL.__version__, torchvision.__version__)).encode())
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
    folder, unfinished, lock = packing.folder, packing.folder / UNFINISHED, packing.folder / LOCK
    if packing.finished:
        index = read_index(folder)
        whole = any("heights" in content for content in index["splits"].values())
        if (index["size"], whole) != (packing.size, packing.whole):
            held, asked = (
                f"{'whole pictures' if is_whole else 'images'} of {size} pixels"
                for size, is_whole in ((index["size"], whole), (packing.size, packing.whole))
            )
            raise UserError(f"{folder} holds {held}: pack {asked} into another folder")
        lists = {split: content["chunks"] for split, content in index["splits"].items()}
        noted = {f"{split} {number * CHUNK}": pair for split in lists for number, pair in enumerate(lists[split])}
        # If there are more or fewer chunks than before, none counts as the one that was packed.
        packing.noted = noted if noted.keys() == packing.chunks.keys() else {}
        yield from _go_through(packing, workers, "checking")
    else:
        with lock.open("w") as locked:
            try:
                # Unlike flock, lockf ends with this process even if its workers live on for a moment.
                fcntl.lockf(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another process is packing into {folder}: wait for it, or stop it") from error
            packing.noted = read_json(unfinished) if unfinished.exists() else {}
            paths = {split: records_file(folder, split) for split in packing.images}
            for split, path in paths.items():
                path.touch()
                os.truncate(path, packing.bytes[split])
            yield from _go_through(packing, workers, "packing")
            packing.read_only = True
            yield from _go_through(packing, workers, "checking")
            splits = {}
            for split, path in paths.items():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                folders: Any = packing.images[split].images
                classes = {folders.classes[label]: len(list(same)) for label, same in groupby(folders.targets)}
                chunks = [packing.noted[name] for name, chunk in packing.chunks.items() if chunk[0] == split]
                splits[split] = {"classes": classes, "chunks": chunks}
                if packing.whole:
                    splits[split] |= dict(zip(("heights", "widths"), packing.shapes[split].T.tolist()))
            write_index(
                folder, packing.format, {"name": packing.source.absolute().name, "size": packing.size, "splits": splits}
            )
    for path in (unfinished, lock, *folder.glob(".*.json.*")):  # the last are what write_whole leaves when it is killed
        path.unlink(missing_ok=True)


def _go_through(packing: Packing, workers: int, step: str) -> Iterator[tuple[str, int]]:
    """Read every chunk, in any sequence, and note those that were packed. Unreadable images are named on stderr."""
    unreadable = 0
    loader = DataLoader(packing, None, sampler=list(packing.chunks), num_workers=workers, in_order=False)
    try:
        for name, noted, sentences in loader:
            for sentence in sentences:
                print(sentence, file=sys.stderr)
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
        count = f"{unreadable} images{' or more' if unreadable >= MOST_UNREADABLE else ''}"
        raise UserError(
            f"{count} of {packing.source} can't be read: replace or remove those named above, then the same command "
            "continues"
        )
