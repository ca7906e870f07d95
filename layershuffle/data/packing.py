"""Packs class folders for ``layershuffle.data.packed``: in parallel, restartable, checked.

The images of each split are divided into chunks of neighbours. A chunk has a key, which stands for the files it was
made from, and the checksum of its pixels. A chunk whose key and pixels are as noted is not packed again, so that
packing continues wherever it was stopped.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import PIL
import torchvision
from torch.utils.data import DataLoader, Dataset

from layershuffle.data.decoding import DecodedImages
from layershuffle.data.folders import ImageFolders
from layershuffle.data.packed import FORMAT, INDEX, read_index, record_size, records_file, write_index
from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole

CHUNK = 256
"""Images that a worker packs at a time, and loses at most when it is killed."""
MOST_UNREADABLE = 20
"""Packing ends once this many images can't be read; if there are fewer, all of them are named first."""
UNFINISHED = "unfinished.json"
"""The key and the checksum of each chunk that is written, until the index takes its place."""
LOCK = "packing.lock"
SPLITS = ("train", "val")


class Packing(Dataset):
    """The chunks of class folders that are packed into ``folder``. Reading a chunk packs it unless it is there already.

    Args:
        source: the folder that holds ``train`` and ``val``.
        folder: where to pack it.
        size: height and width of the packed images, in pixels.
    """

    def __init__(self, source: Path, folder: Path, size: int) -> None:
        data = ImageFolders(str(source), image_size=size)
        self.images: dict[str, DecodedImages] = {split: data.load(train=split == "train") for split in SPLITS}
        self.source, self.folder, self.size = source, folder, size
        self.chunks = [
            (split, range(start, min(start + CHUNK, len(images))))
            for split, images in self.images.items()
            for start in range(0, len(images), CHUNK)
        ]
        self.finished = self.read_only = (folder / INDEX).exists()
        self.noted: dict[str, list[str]] = {}  # key and checksum of each chunk that is written, by its ``_name``

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> tuple[str, int, list[str], list[str]]:
        """Pack a chunk.

        Returns:
            Its name, its number of images, its key and checksum, and a sentence for each image that can't be read.

        Raises:
            UserError: if it can't be written, or in a folder that is only read, if it is not what was packed.
        """
        split, images = self.chunks[index]
        name, key = _name(split, images), self._key(split, images)
        path, record = records_file(self.folder, split), record_size(self.size)
        noted_key, checksum = self.noted.get(name, ("", ""))
        if key == noted_key and checksum == _checksum(path, images.start * record, len(images) * record):
            return name, len(images), [key, checksum], []
        if self.read_only:
            raise self.changed() if key != noted_key else self.damaged(path, images)
        digest, unreadable = hashlib.sha256(), []
        try:
            with path.open("r+b") as file:
                file.seek(images.start * record)
                for image in images:
                    try:
                        pixels = self.images[split].decode(image)[0].numpy().tobytes()
                    except UserError as error:
                        unreadable.append(str(error))
                        pixels = bytes(record)
                    digest.update(pixels)
                    file.write(pixels)
        except OSError as error:
            raise UserError(
                f"{path} could not be written ({error.strerror}): once that is mended, the same command continues"
            ) from error
        return name, len(images), [key, digest.hexdigest()], unreadable

    def missing(self) -> int:
        """The bytes that packing will still take."""
        there = {split: records_file(self.folder, split) for split in SPLITS}
        held = {split: path.stat().st_blocks * 512 if path.exists() else 0 for split, path in there.items()}
        return sum(max(0, self.total(split) - held[split]) for split in SPLITS)

    def total(self, split: str) -> int:
        """The bytes of a split's images."""
        return len(self.images[split]) * record_size(self.size)

    def content(self, split: str) -> dict[str, Any]:
        """What the index says of a split."""
        folders: Any = self.images[split].images
        return {
            "classes": {folders.classes[label]: len(list(images)) for label, images in groupby(folders.targets)},
            "chunks": [self.noted[_name(*chunk)] for chunk in self.chunks if chunk[0] == split],
        }

    def changed(self) -> UserError:
        """The error to raise where the folder was packed from other files."""
        remedy = "pack it into another folder" if self.finished else "the same command packs what has changed"
        return UserError(
            f"{self.source}, or the Pillow or torchvision that reads it, is not what {self.folder} was packed from: "
            f"{remedy}"
        )

    def damaged(self, path: Path, images: range) -> UserError:
        """The error to raise where a file no longer has the pixels that were written."""
        remedy = "remove the folder and pack it again" if self.finished else "the same command packs them again"
        return UserError(f"images {images.start} to {images.stop - 1} of {path} are not what was written: {remedy}")

    def _key(self, split: str, images: range) -> str:
        folders: Any = self.images[split].images
        key = hashlib.sha256(repr((FORMAT, self.size, PIL.__version__, torchvision.__version__)).encode())
        for image in images:
            path, label = folders.samples[image]
            try:
                stat = os.stat(path)
                version = (stat.st_size, stat.st_mtime_ns)
            except OSError:
                version = (-1, -1)  # decoding it will give the better error
            key.update(repr((os.path.relpath(path, folders.root), label, *version)).encode())
        return key.hexdigest()


def pack(packing: Packing, workers: int, advance: Callable[[str, int], None]) -> None:
    """Pack what is missing, read all of it again, and write the index that makes it a packed folder.

    Args:
        packing: what to pack, and where to.
        workers: the number of processes that do it; 0 for this one.
        advance: called with "packing" or "checking" and the number of images that this was done with.

    Raises:
        UserError: if anything goes wrong. Nothing is lost by it: the next run continues from there.
    """
    folder, unfinished = packing.folder, packing.folder / UNFINISHED
    with (folder / LOCK).open("w") as lock:
        try:
            # Unlike flock, lockf ends with this process even if its workers live on for a moment.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is packing into {folder}: wait for it, or stop it") from error
        packing.noted = read_json(unfinished) if unfinished.exists() else {}
        for split in SPLITS:
            path = records_file(folder, split)
            path.touch()
            os.truncate(path, packing.total(split))
        _go_through(packing, workers, lambda images: advance("packing", images))
        packing.read_only = True
        _go_through(packing, workers, lambda images: advance("checking", images))
        for split in SPLITS:
            with records_file(folder, split).open("rb") as file:
                os.fsync(file.fileno())
        splits = {split: packing.content(split) for split in SPLITS}
        write_index(folder, {"name": packing.source.absolute().name, "size": packing.size, "splits": splits})
        unfinished.unlink()
    (folder / LOCK).unlink()


def check(packing: Packing, workers: int, advance: Callable[[str, int], None]) -> None:
    """Compare a finished folder with its checksums and with its source; raises UserError if anything differs.

    Takes the arguments of ``pack``.
    """
    folder, index = packing.folder, read_index(packing.folder)
    if index["size"] != packing.size:
        raise UserError(
            f"{folder} holds images of {index['size']} pixels: pack those of {packing.size} into another folder"
        )
    for split in SPLITS:
        for number, noted in enumerate(index["splits"][split]["chunks"]):
            packing.noted[f"{split} {number * CHUNK}"] = noted
    if packing.noted.keys() != {_name(*chunk) for chunk in packing.chunks}:
        raise packing.changed()
    _go_through(packing, workers, lambda images: advance("checking", images))
    for name in (UNFINISHED, LOCK):
        (folder / name).unlink(missing_ok=True)  # a run that was killed at its very end leaves them


def _go_through(packing: Packing, workers: int, advance: Callable[[int], None]) -> None:
    """Read every chunk, in any sequence, and note those that were packed. Unreadable images are named on stderr."""
    unreadable = 0
    try:
        for name, images, noted, sentences in DataLoader(packing, None, num_workers=workers, in_order=False):
            for sentence in sentences:
                print(sentence, file=sys.stderr)
            unreadable += len(sentences)
            if unreadable >= MOST_UNREADABLE:
                break
            if not sentences and packing.noted.get(name) != noted:
                packing.noted[name] = noted
                write_whole(packing.folder / UNFINISHED, json.dumps(packing.noted))
            advance(images)
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


def _name(split: str, images: range) -> str:
    """What notes call a chunk, such as "train 256"."""
    return f"{split} {images.start}"


def _checksum(path: Path, start: int, length: int) -> str:
    """The SHA-256 of a part of a file, or "" if it can't be read."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            return hashlib.sha256(file.read(length)).hexdigest()
    except OSError:
        return ""
