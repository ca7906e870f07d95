"""Packs class folders for ``layershuffle.data.packed``: in parallel, restartable, checked.

The images of a split are dealt into chunks of neighbours. A chunk that is written is noted in a journal beside the
records, with the checksum of its pixels and a key that stands for the files it was made of; what finds its key there
is not packed again. In the end all is read back and compared, and the index makes it a packed folder.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
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

CHUNK = 256
"""Images that a process packs at a time, and that are lost at most when it is killed."""
MOST_UNREADABLE = 20
"""So many images that can't be read end the packing; fewer are all named first."""
JOURNAL = "packing.jsonl"
SPLITS = ("train", "val")

Known = dict[tuple[str, int], tuple[str, str]]
"""The chunks that are written: key and checksum by split and first image."""


@dataclass(frozen=True)
class Chunk:
    """What became of a chunk.

    Attributes:
        split: "train" or "val".
        start: its first image.
        images: how many it has.
        key: stands for the files it was made of and for what it was made with.
        sha256: of its pixels as they were written; of a chunk with unreadable images, None.
        unreadable: a sentence for each image that could not be read.
    """

    split: str
    start: int
    images: int
    key: str
    sha256: str | None
    unreadable: tuple[str, ...] = ()


class Packing(Dataset):
    """The chunks of a packing; getting one packs it, unless ``known`` has it already.

    Args:
        source: the folder that holds ``train`` and ``val``.
        folder: where to pack it.
        size: height and width of the packed images, in pixels.
    """

    def __init__(self, source: Path, folder: Path, size: int) -> None:
        data = ImageFolders(str(source), image_size=size)
        self.images: dict[str, DecodedImages] = {split: data.load(train=split == "train") for split in SPLITS}
        self.source, self.folder, self.size = source, folder, size
        self.starts = [(split, start) for split in SPLITS for start in range(0, len(self.images[split]), CHUNK)]
        self.finished = (folder / INDEX).exists()
        self.known: Known = {}

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, at: int) -> Chunk:
        """Raises UserError if it can't be written, or if the folder is finished and its source is another by now."""
        split, start = self.starts[at]
        several = range(start, min(start + CHUNK, len(self.images[split])))
        key, digest, unreadable = self._key(split, several), hashlib.sha256(), []
        known, sha256 = self.known.get((split, start), (None, None))
        if known == key:
            return Chunk(split, start, len(several), key, sha256)
        if self.finished:
            raise self.changed()
        path = records_file(self.folder, split)
        try:
            with path.open("r+b") as file:
                file.seek(start * record_size(self.size))
                for n in several:
                    try:
                        record = self.images[split].decode(n)[0].numpy().tobytes()
                    except UserError as error:
                        unreadable.append(str(error))
                        record = bytes(record_size(self.size))
                    digest.update(record)
                    file.write(record)
        except OSError as error:  # an errno doesn't survive the way from a DataLoader's worker
            raise _unwritten(path, error) from error
        return Chunk(
            split, start, len(several), key, None if unreadable else digest.hexdigest(), unreadable=tuple(unreadable)
        )

    def changed(self) -> UserError:
        """What to say where the folder is finished, but of other files."""
        return UserError(
            f"{self.source}, or the Pillow or torchvision that reads it, is not what {self.folder} was packed from: "
            "pack it into another folder"
        )

    def missing(self) -> int:
        """The bytes that packing will still take."""
        there = {split: records_file(self.folder, split) for split in SPLITS}
        held = {split: path.stat().st_blocks * 512 if path.exists() else 0 for split, path in there.items()}
        return sum(max(0, self.total(split) - held[split]) for split in SPLITS)

    def total(self, split: str) -> int:
        """The bytes of a split's records."""
        return len(self.images[split]) * record_size(self.size)

    def classes(self, split: str) -> dict[str, int]:
        """The number of images of each class, by name, in the sequence of their labels."""
        folders: Any = self.images[split].images
        return {folders.classes[label]: len(list(of)) for label, of in groupby(folders.targets)}

    def _key(self, split: str, several: Iterable[int]) -> str:
        folders: Any = self.images[split].images
        key = hashlib.sha256(repr((FORMAT, self.size, PIL.__version__, torchvision.__version__)).encode())
        for n in several:
            path, label = folders.samples[n]
            try:
                stat = os.stat(path)
                version = (stat.st_size, stat.st_mtime_ns)
            except OSError:
                version = (-1, -1)  # packing will say it better
            key.update(repr((os.path.relpath(path, folders.root), label, *version)).encode())
        return key.hexdigest()


class Checking(Dataset):
    """The chunks of a packing as they are on disk; getting one tells whether it is what was written."""

    def __init__(self, folder: Path, size: int, chunks: list[Chunk]) -> None:
        self.folder, self.size, self.chunks = folder, size, chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, at: int) -> tuple[Chunk, bool]:
        chunk, digest = self.chunks[at], hashlib.sha256()
        try:
            with records_file(self.folder, chunk.split).open("rb") as file:
                file.seek(chunk.start * record_size(self.size))
                for _ in range(chunk.images):
                    digest.update(file.read(record_size(self.size)))
        except OSError:
            return chunk, False
        return chunk, digest.hexdigest() == chunk.sha256


def pack(packing: Packing, workers: int, advance: Callable[[str, int], None]) -> None:
    """Pack what is missing, check all of it, and make it a packed folder.

    Args:
        packing: what to pack, and where to.
        workers: processes that do it; none but this one if 0.
        advance: called with "packing" or "checking" and the number of images that this has been done with.

    Raises:
        UserError: (a ValueError) in one sentence for all that can go wrong. Nothing is lost by it: the next run goes on
            from there.
    """
    folder = packing.folder
    with _journal(folder) as journal:
        packing.known = _noted(journal)
        for split in SPLITS:
            path = records_file(folder, split)
            path.touch()
            os.truncate(path, packing.total(split))
        chunks = _packed(packing, workers, advance, journal)
        if wrong := _wrong(packing, chunks, workers, advance):
            for chunk in wrong:
                _note(journal, chunk, None)
            raise UserError(
                f"{sum(chunk.images for chunk in wrong)} images in {folder} are not what was written there: if the "
                "disk is sound, the same command packs them again"
            )
        for split in SPLITS:
            with records_file(folder, split).open("rb") as file:
                os.fsync(file.fileno())
        splits = {
            split: {
                "classes": packing.classes(split),
                "chunks": [(chunk.key, chunk.sha256) for chunk in chunks if chunk.split == split],
            }
            for split in SPLITS
        }
        write_index(folder, {"name": packing.source.absolute().name, "size": packing.size, "splits": splits})
        (folder / JOURNAL).unlink()


def check(packing: Packing, workers: int, advance: Callable[[str, int], None]) -> None:
    """Compare a finished folder with what was packed into it, and with the files that this was made of.

    Args:
        packing: of a folder that is finished.
        workers: as for ``pack``.
        advance: as for ``pack``.

    Raises:
        UserError: (a ValueError) in one sentence if anything differs.
    """
    folder, index = packing.folder, read_index(packing.folder)
    if index["size"] != packing.size:
        raise UserError(
            f"{folder} holds images of {index['size']} pixels: pack those of {packing.size} into another folder"
        )
    for split in SPLITS:
        for at, (key, sha256) in enumerate(index["splits"][split]["chunks"]):
            packing.known[split, at * CHUNK] = (key, sha256)
    if not packing.known.keys() <= set(packing.starts):
        raise packing.changed()
    chunks = _packed(packing, workers, advance)
    if wrong := _wrong(packing, chunks, workers, advance):
        raise UserError(
            f"{sum(chunk.images for chunk in wrong)} images in {folder} are no longer what was packed: remove it and "
            "pack it again"
        )
    (folder / JOURNAL).unlink(missing_ok=True)  # a run that was killed at its very end leaves it


def _packed(
    packing: Packing, workers: int, advance: Callable[[str, int], None], journal: FileIO | None = None
) -> list[Chunk]:
    """All chunks in their sequence, each noted once it is written.

    Raises:
        UserError: if images can't be read; each is named on stderr.
    """
    found: dict[tuple[str, int], Chunk] = {}
    unreadable = 0
    for chunk in _results(packing, workers):
        at = (chunk.split, chunk.start)
        found[at] = chunk
        if journal and chunk.sha256 and packing.known.get(at) != (chunk.key, chunk.sha256):
            _note(journal, chunk, chunk.sha256)
        for sentence in chunk.unreadable:
            print(sentence, file=sys.stderr)
        unreadable += len(chunk.unreadable)
        if unreadable >= MOST_UNREADABLE:
            break
        advance("packing", chunk.images)
    if unreadable:
        count = f"{unreadable} images{' or more' if len(found) < len(packing) else ''}"
        raise UserError(
            f"{count} of {packing.source} can't be read: replace or remove those named above, then the same command "
            "goes on"
        )
    return [found[at] for at in packing.starts]


def _wrong(packing: Packing, chunks: list[Chunk], workers: int, advance: Callable[[str, int], None]) -> list[Chunk]:
    """The chunks that are not on disk as they were written."""
    wrong = []
    for chunk, right in _results(Checking(packing.folder, packing.size, chunks), workers):
        if not right:
            wrong.append(chunk)
        advance("checking", chunk.images)
    return wrong


def _results(work: Dataset, workers: int) -> Iterator[Any]:
    """What ``work`` holds, in any sequence."""
    try:
        yield from DataLoader(work, None, num_workers=workers, collate_fn=_as_is, in_order=False)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that was packing has been killed, perhaps for want of memory: the same command goes on, with "
            "fewer --workers if need be"
        ) from error


def _as_is(result: Any) -> Any:
    return result


@contextmanager
def _journal(folder: Path) -> Iterator[FileIO]:
    """The journal of a packing, held by one process at a time; unbuffered, so that nothing is pending when it fails."""
    with (folder / JOURNAL).open("ab+", buffering=0) as journal:
        try:
            # Let go when this process ends in whatever way, even if its workers live on for a moment.
            fcntl.lockf(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another process is packing into {folder}: wait for it, or stop it") from error
        yield journal


def _noted(journal: FileIO) -> Known:
    """The chunks in the journal, of each what was noted last; a line that a crash cut short is passed over."""
    known: dict[tuple[str, int], tuple[str, str | None]] = {}
    journal.seek(0)
    for line in journal.readall().splitlines():
        try:
            split, start, key, sha256 = json.loads(line)
        except ValueError:
            continue
        known[split, start] = (key, sha256)
    return {at: (key, sha256) for at, (key, sha256) in known.items() if sha256}


def _note(journal: FileIO, chunk: Chunk, sha256: str | None) -> None:
    try:  # on a line of its own, even if the last one was cut short
        journal.write(f"\n{json.dumps([chunk.split, chunk.start, chunk.key, sha256])}\n".encode())
    except OSError as error:
        raise _unwritten(Path(str(journal.name)), error) from error


def _unwritten(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} could not be written ({error.strerror}): once that is mended, the same command goes on")
