"""Packs a data set: its images are resized and cropped once, so that training reads them without decoding."""

import logging
import shutil
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from layershuffle.api.progress import progress_bar
from layershuffle.data import HuggingFaceImages, ImageFolders, packing
from layershuffle.data.chunks import Packable
from layershuffle.data.class_folders import class_folders
from layershuffle.data.decoding import PICTURE_CHANNELS
from layershuffle.data.description import describe_left_out
from layershuffle.data.loaders import WORKERS_LIMIT
from layershuffle.data.packing import Packing
from layershuffle.data.saved_splits import holds_saved_set
from layershuffle.errors import UserError
from layershuffle.processes import usable_cores

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedFolder:
    """A folder of packed images, of which every image has been checked.

    Attributes:
        folder: the folder, which ``layershuffle.data.PackedFolders`` reads.
        images: the number of images of each split.
        bytes: the length of all images.
        was_finished: whether it was packed already, so that it was only checked.
    """

    folder: Path
    images: dict[str, int]
    bytes: int
    was_finished: bool

    def __fspath__(self) -> str:
        """The path of the folder: a packed folder stands wherever such a folder is taken."""
        return str(self.folder)


def pack(
    source: str | Path | HuggingFaceImages,
    folder: str | Path,
    *,
    size: int = 224,
    whole: bool = False,
    workers: int | None = None,
    test_fraction: float | None = None,
    channels: int = 3,
    image_column: str | None = None,
    label_column: str | None = None,
) -> PackedFolder:
    """Resize and crop the images of a data set once, into files that are read without decoding.

    If it is stopped or killed, the same call continues and ends with the same bytes.

    Args:
        source: the folder with train/CLASS/*, and val/CLASS/* or test/CLASS/* or both; with ``test_fraction``, CLASS/*
            will do. Or what ``HuggingFaceImages`` reads, or one of these, with options of its own.
        folder: where to pack it: a new folder, or one that the same call has begun.
        size: height and width that the model takes, in pixels.
        whole: pack whole pictures, whose shorter side is ``size``, instead of the squares in their centres.
        workers: processes that pack; by default one per core.
        test_fraction: the part of each class to pack as the test images, where there are none.
        channels: how many channels the model takes: 1 for grey, 3 for RGB over white, or 4 for RGBA.
        image_column: of a set of Hugging Face, the column with the images, if several have the type Image.
        label_column: the column with the labels, if several have the type ClassLabel.

    Raises:
        UserError: if the folders can't be read, don't fit on the disk, or are not what was packed before.
    """
    # The cores that this process may use, and not all: schedulers and containers give a process some of them.
    if workers is None:
        workers = usable_cores()
    if size < 1 or not 0 <= workers <= WORKERS_LIMIT:
        raise UserError(f"the size is in pixels, at least 1, and workers are from 0 to {WORKERS_LIMIT:,}")
    if channels not in PICTURE_CHANNELS:
        raise UserError(f"pictures are packed in 1 channel (grey), 3 (RGB) or 4 (RGBA), not in {channels}")
    folder = Path(folder)
    data = _data_of(source, test_fraction, image_column, label_column)
    work = Packing(data, folder, size, whole, workers, channels)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder to pack into")
    folder.mkdir(parents=True, exist_ok=True)

    images = {split: len(sources) for split, sources in work.images.items()}
    _announce(work, images)
    was_finished = work.finished
    # Each chunk comes as ("packing" or "checking", number of images). First all images are packed, and then all are
    # checked, so that each of the two groups gets a bar from 0 to all images.
    total = sum(images.values())
    for step, chunks in groupby(packing.pack(work, workers), key=itemgetter(0)):
        with progress_bar(step, total, "image") as advance:
            for _, count in chunks:
                advance(count)
    return PackedFolder(folder, images, sum(work.bytes.values()), was_finished)


def _data_of(
    source: str | Path | HuggingFaceImages,
    test_fraction: float | None,
    image_column: str | None,
    label_column: str | None,
) -> Packable:
    """The data set that a folder holds, see ``pack``."""
    if isinstance(source, HuggingFaceImages):
        # A new one, because packing changes how it is read.
        return HuggingFaceImages(**source.config().args)
    has_class_folders = bool(class_folders(Path(source) / "train"))
    if holds_saved_set(Path(source)) and not has_class_folders:
        return HuggingFaceImages(str(source), image_column, label_column, test_fraction=test_fraction)
    if image_column is not None or label_column is not None:
        raise UserError(f"{source} holds no set of Hugging Face, which alone has columns: leave their names out")
    return ImageFolders(str(source), test_fraction)


def _announce(work: Packing, images: dict[str, int]) -> None:
    """Say what will be packed and how much room it takes; raise a UserError if the disk has less."""
    for line in describe_left_out(work.left_out):
        logger.info("%s", line)
    counts = ", ".join(f"{count:,} {split}" for split, count in images.items())
    if work.whole:
        kind = f"whole pictures of {work.size} pixels and more"
    else:
        kind = f"images of {work.size} x {work.size} pixels"
    total = _gigabytes(sum(work.bytes.values()))
    missing = work.missing()
    free = shutil.disk_usage(work.folder).free
    logger.info(
        "%s %s take %s; %s are still to be written, %s are free",
        counts,
        kind,
        total,
        _gigabytes(missing),
        _gigabytes(free),
    )
    if missing > free and not work.finished:
        raise UserError(
            f"{work.folder} has {_gigabytes(free)} free and {_gigabytes(missing)} are needed: free the rest or pack "
            "into a folder on another disk"
        )


def _gigabytes(count: int) -> str:
    """A number of bytes in GB (10^9 bytes), with three digits."""
    return f"{count / 1e9:,.3g} GB"
