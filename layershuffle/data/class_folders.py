"""Folders whose images are a class: which there are, and the data set of their images."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from layershuffle.data.decoding import open_image, why_left_out
from layershuffle.data.walking import is_folder


class ClassFolders(Dataset):
    """Images and their labels.

    Args:
        root: the folder that holds the class folders.
        paths_of: the paths of the images of each class, by its name, in the sequence of the labels.
        channels: how many channels to read images in.

    Attributes:
        classes: the names of the classes.
        samples: path and label of each image.
        targets: the label of each image.
    """

    def __init__(self, root: str, paths_of: Mapping[str, Sequence[str]], channels: int = 3) -> None:
        self.root = root
        self.channels = channels
        self.classes = list(paths_of)
        self.samples: list[tuple[str, int]] = []
        for label, paths in enumerate(paths_of.values()):
            self.samples += [(path, label) for path in paths]
        self.targets = [label for _, label in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path, label = self.samples[index]
        return open_image(path, self.channels), label

    def file(self, index: int) -> str:
        """The path of an image."""
        return self.samples[index][0]

    def version(self, index: int) -> tuple[Any, ...]:
        """What stands for the file of an image and its label: it changes when the file does.

        It has the path below the class folders, the label, the size in bytes and the time of the last change. Reading
        all of the file would take as long as packing.
        """
        path, label = self.samples[index]
        # A file that is gone has neither, which decoding it will report.
        size_and_time = (-1, -1)
        with suppress(OSError):
            stat = os.stat(path)
            size_and_time = (stat.st_size, stat.st_mtime_ns)
        return (os.path.relpath(path, self.root), label, *size_and_time)


def holds_pictures(folder: Path) -> bool:
    """Whether one of the first files in a folder is a picture; raises OSError if the folder can't be read."""
    # A hundred entries tell enough: looking through millions of them would take long.
    with os.scandir(folder) as entries:
        for entry in islice(entries, 100):
            if entry.is_file() and why_left_out(entry.path, str(folder)) is None:
                return True
    return False


def class_folders(folder: str | Path) -> list[str]:
    """The names of the folders in ``folder``, in alphabetical order, without those that begin with a dot.

    A folder that isn't there or can't be read has none: callers know better which mistake that is.
    """
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if is_folder(entry)]
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith("."))
