"""Images in class folders, such as ImageNet-1k, which are decoded when they are read."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder

from layershuffle.data.decoding import open_image, why_left_out
from layershuffle.data.module import ImageData
from layershuffle.data.preprocessing import DecodedImages
from layershuffle.errors import UserError

SPLITS = ("train", "val", "test")
"""The folders that a data set can have."""


class ImageFolders(ImageData):
    """``ROOT/train/CLASS/*``, and test images in ``ROOT/test/CLASS/*`` or, without that, in ``ROOT/val/CLASS/*``.

    The checkpoint is selected on ``val`` if there is a ``test`` too. Otherwise a part of the training images is held
    out for that. Folders and files whose names begin with a dot are left out, and so are files that are no images.

    Args:
        root: the folder that holds ``train`` and the others.
        kwargs: the arguments of ``ImageData``. With val_fraction 0, the test images select the checkpoint in any case.
    """

    def __init__(self, root: str = "data/imagenet", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = root
        self.left_out: dict[str, list[tuple[str, str]]] = {}  # path and reason of files that are no images, by split

    @property
    def label(self) -> str:
        return Path(self.root).name

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of class folders in ``ROOT/train``. Raises UserError if there is just one."""
        names = self.class_names
        if len(names) == 1:
            raise UserError(f"{self.root} has images of one class only, {names[0]}: a model learns to classify several")
        return len(names)

    @property
    def class_names(self) -> list[str]:
        """The names of the class folders in ``ROOT/train``."""
        return self._classes("train")

    @property
    def splits(self) -> list[str]:
        """Those of ``SPLITS`` that there are. ImageNet's ``test`` is not among them, as it has no class folders."""
        return [split for split in SPLITS if class_folders(Path(self.root) / split)]

    @property
    def sources(self) -> dict[str, str]:
        """The split from which images come: for training, for testing, and if not held out, for validation."""
        sources = {"training": "train", "testing": "val"}
        if "test" in self.splits:
            sources["testing"] = "test"
            if self.val_fraction and "val" in self.splits:
                sources["validation"] = "val"
        return sources

    def load(self, train: bool) -> Dataset:
        """Raises UserError if a class folder is empty or the splits have different classes."""
        return self.read(self.sources["training" if train else "testing"])

    def load_validation(self) -> Dataset | None:
        if "validation" not in self.sources:
            return None
        return self.read(self.sources["validation"])

    def read(self, split: str) -> DecodedImages:
        """The images of one of ``splits``. Raises UserError if there are none, or other classes than in ``train``."""
        self._check_classes(split)
        folder = os.path.join(self.root, split)
        left_out: list[tuple[str, str]] = []
        self.left_out[split] = left_out

        def is_image(path: str) -> bool:
            reason = why_left_out(path, folder)
            if reason:
                left_out.append((path, reason))
            return not reason

        try:
            images = ClassFolders(folder, loader=open_image, is_valid_file=is_image)
        except FileNotFoundError as error:
            raise UserError(f"{folder}: {error}") from error
        return DecodedImages(images, self.image_size, self.unreadable, self.resizing)

    def _check_classes(self, split: str) -> None:
        """Raise UserError if a split has other class folders than the training images."""
        expected = set(self._classes("train"))
        present = set(self._classes(split))
        differences = []
        if expected - present:
            differences.append(f"lacks {_listed(sorted(expected - present))}")
        if present - expected:
            differences.append(f"has {_listed(sorted(present - expected))} besides")
        if differences:
            raise UserError(
                f"{self.root}/{split} {' and '.join(differences)}: its class folders must be those of {self.root}/train"
            )

    def describe(self) -> str:
        """What ``ImageData.describe`` says, where the images come from, and which files are left out, and why."""
        sources = self.sources
        where = ", ".join(f"{self.root}/{split} for {use}" for use, split in sources.items())
        unused = [f"{self.root}/{split}" for split in SPLITS if split not in sources.values()]
        unused = [folder for folder in unused if os.path.isdir(folder)]
        if unused:
            where += f"; {', '.join(unused)} is not used"

        left_out: list[tuple[str, str]] = []
        for files in self.left_out.values():
            left_out += files
        return "\n".join([super().describe(), where, *describe_left_out(left_out)])

    def _classes(self, split: str) -> list[str]:
        folder = Path(self.root) / split
        classes = class_folders(folder)
        if classes:
            return classes
        if not os.path.isdir(self.root):
            raise UserError(f"there is no folder {self.root}: name the one that holds {' and '.join(SPLITS[:2])}")
        raise UserError(
            f"{folder} has no class folders: put the images of each class into a folder of its own there, "
            f"as in {folder}/n01440764/*.JPEG"
        )


class ClassFolders(ImageFolder):
    """torchvision's ImageFolder, but hidden folders are no classes."""

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        names = class_folders(directory)
        return names, {name: label for label, name in enumerate(names)}


def class_folders(folder: str | Path) -> list[str]:
    """The names of the folders in ``folder``, in alphabetical order, without those that begin with a dot."""
    try:
        names = [entry.name for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []
    return sorted(name for name in names if not name.startswith("."))


def describe_left_out(files: Sequence[tuple[str, str]], most: int = 10) -> list[str]:
    """Lines that name the first ``most`` of these files, each with the reason, and count the others."""
    if not files:
        return []
    lines = [f"files left out: {len(files):,}"]
    lines += [f"  {path}: {reason}" for path, reason in files[:most]]
    if len(files) > most:
        lines.append(f"  and {len(files) - most:,} more")
    return lines


def _listed(names: Sequence[str], most: int = 10) -> str:
    text = ", ".join(names[:most])
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text
