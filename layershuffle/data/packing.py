"""Packs data sets for ``PackedFolders``: in parallel, restartable, checked.

Worker processes pack the chunks, see ``chunks``. This process keeps a file with the notes of those that are written. At
the end all of them are read again and compared with their notes, and the index takes the place of the notes.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from layershuffle.data.chunks import Packing
from layershuffle.data.pack_index import PackedSplit, PackIndex, read_index, records_file, write_index
from layershuffle.errors import UserError
from layershuffle.files import WriterLock, read_json, write_whole
from layershuffle.plurals import counted

logger = logging.getLogger(__name__)

MOST_UNREADABLE = 20
"""Packing ends once this many images can't be read; if there are fewer, all of them are named first."""
UNFINISHED = "unfinished.json"
"""The note of each chunk that is written, until the index takes its place."""


def pack(packing: Packing, workers: int) -> Iterator[tuple[str, int]]:
    """Pack what is missing, read all of it again, and write the index. A finished folder is only read and compared.

    ``workers`` processes do the work, or this one if there are 0. Yields "packing" or "checking" and the number of
    images that this was done with. Raises UserError if anything goes wrong; the next run continues from there.
    """
    if packing.finished:
        yield from _compare(packing, workers)
    else:
        yield from _pack(packing, workers)
    # Nothing unfinished is needed any more. What write_whole leaves when it is killed begins with a dot.
    leftovers = packing.folder.glob(".*.json.*")
    for path in (packing.folder / UNFINISHED, *leftovers):
        path.unlink(missing_ok=True)


def _compare(packing: Packing, workers: int) -> Iterator[tuple[str, int]]:
    """Read a finished folder, and compare it with the index."""
    index = read_index(packing.folder)
    present = _kind(index.size, index.is_whole, index.channels)
    asked_for = _kind(packing.size, packing.whole, packing.channels)
    if present != asked_for:
        raise UserError(f"{packing.folder} holds {present}: pack {asked_for} into another folder")

    # The index has the notes of the chunks without their names, in one sequence. If there are more or fewer chunks than
    # before, nobody knows which note is whose: none is taken, so that the first chunk is told to differ.
    count_before = {split: len(packed.chunks) for split, packed in index.splits.items()}
    count_now = {split: len(_chunks_of(packing, split)) for split in packing.images}
    if count_before == count_now:
        for split, packed in index.splits.items():
            names = _chunks_of(packing, split)
            packing.noted.update(zip(names, packed.chunks))
    yield from _go_through(packing, workers, "checking")


def _kind(size: int, whole: bool, channels: int) -> str:
    """What a folder holds, in words, such as "images of 224 pixels and 3 channels"."""
    images = "whole pictures" if whole else "images"
    return f"{images} of {size} pixels and {counted(channels, 'channel')}"


def _pack(packing: Packing, workers: int) -> Iterator[tuple[str, int]]:
    """Pack what is missing, read all of it again, and write the index."""
    folder = packing.folder
    unfinished = folder / UNFINISHED
    with WriterLock(folder):
        if unfinished.exists():
            packing.noted = read_json(unfinished)

        # Workers write into the middle of a file, which therefore has its length from the beginning.
        for split, length in packing.bytes.items():
            path = records_file(folder, split)
            path.touch()
            os.truncate(path, length)
        yield from _go_through(packing, workers, "packing")

        # Reading all of it again finds files that changed meanwhile, and what a failing disk has not kept.
        packing.read_only = True
        yield from _go_through(packing, workers, "checking")

        # The index says that the folder is packed, so the pixels must be on the disk before.
        for split in packing.images:
            with records_file(folder, split).open("rb") as file:
                os.fsync(file.fileno())
        splits = {split: _packed_split(packing, split) for split in packing.images}
        write_index(folder, PackIndex(packing.source.absolute().name, packing.size, splits, packing.channels))


def _packed_split(packing: Packing, split: str) -> PackedSplit:
    """What the index says of a split."""
    source: Any = packing.images[split].images
    # The images of a class are neighbours, so that their number is enough. A class without images in this split has its
    # place, too.
    count_of_label = Counter(source.targets)
    count_of_class = {name: count_of_label[label] for label, name in enumerate(source.classes)}
    notes = [packing.noted[name] for name in _chunks_of(packing, split)]
    # All squares have the size of the folder, but each whole picture has a shape of its own.
    if not packing.whole:
        return PackedSplit(count_of_class, notes)
    heights, widths = packing.shapes[split].T.tolist()
    return PackedSplit(count_of_class, notes, heights, widths)


def _chunks_of(packing: Packing, split: str) -> list[str]:
    """The names of the chunks of a split, in the sequence of their images."""
    return [name for name, chunk in packing.chunks.items() if chunk.split == split]


def _go_through(packing: Packing, workers: int, step: str) -> Iterator[tuple[str, int]]:
    """Read every chunk, in any sequence, and note those that were packed. Unreadable images are named in the log.

    Yields ``step`` and the number of images of each chunk. Raises UserError if images can't be read, a worker process
    was killed, or a chunk raises one.
    """
    unreadable = 0
    # A DataLoader is used for its worker processes: its items are whole chunks, and batches of them would mean nothing.
    loader = DataLoader(packing, None, sampler=list(packing.chunks), num_workers=workers, in_order=False)
    try:
        for name, note, sentences in loader:
            for sentence in sentences:
                logger.warning(sentence)
            unreadable += len(sentences)
            if unreadable >= MOST_UNREADABLE:
                break
            # The notes are written after every chunk, so that a kill loses no more than the chunks being packed.
            if not sentences and packing.noted.get(name) != note:
                packing.noted[name] = note
                write_whole(packing.folder / UNFINISHED, json.dumps(packing.noted))
            yield step, len(packing.chunks[name].images)
    except RuntimeError as error:
        # torch has no class of its own for the error that a worker is gone.
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that was packing has been killed, perhaps because memory ran out: the same command continues, "
            "with fewer --workers if need be"
        ) from error

    # Those that were named above are all there are, unless it ended early.
    if unreadable:
        count = counted(unreadable, "image")
        if unreadable >= MOST_UNREADABLE:
            count += " or more"
        raise UserError(
            f"{count} of {packing.source} can't be read: replace or remove those named above, then the same command "
            "continues"
        )
