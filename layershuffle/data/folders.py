"""Images in class folders, such as ImageNet-1k, which are decoded when they are read."""

import logging
import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from layershuffle.data.class_folders import ClassFolders, class_folders, holds_pictures
from layershuffle.data.description import describe_left_out, wrapped
from layershuffle.data.preprocessing import DecodedImages
from layershuffle.data.sets import held_out_names
from layershuffle.data.splits import SPLITS, SplitImages
from layershuffle.data.walking import PictureWalk
from layershuffle.errors import UserError
from layershuffle.plurals import listed

logger = logging.getLogger(__name__)


class ImageFolders(SplitImages):
    """``ROOT/train/CLASS/*``, and test images in ``ROOT/test/CLASS/*`` or, without that, in ``ROOT/val/CLASS/*``.

    The checkpoint is selected on ``val`` if there is a ``test`` too. Otherwise a part of the training images is held
    out for that. Folders and files whose names begin with a dot are left out, and so are files that are no images.
    Links are followed, but not into the folder of another class.

    Args:
        root: the folder that holds ``train`` and the others, or with ``test_fraction`` just the class folders.
        test_fraction: the part of each class that is held out as the test set, for folders that have no ``test`` and
            ``val``. Which images these are depends on split_seed and their names alone.
        kwargs: the arguments of ``ImageData``. With val_fraction 0, the test images select the checkpoint in any case.
    """

    def __init__(self, root: str = "data/imagenet", test_fraction: float | None = None, **kwargs: Any) -> None:
        super().__init__(test_fraction, **kwargs)
        self.root = root
        self.left_out: dict[str, list[tuple[str, str]]] = {}  # path and reason of what is no image, by folder
        self._walks: dict[str, PictureWalk] = {}  # by folder

    @property
    def label(self) -> str:
        return Path(self.root).name

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of class folders for training. Raises UserError if there is just one."""
        names = self.class_names
        if len(names) == 1:
            raise UserError(f"{self.root} has images of one class only, {names[0]}: a model learns to classify several")
        return len(names)

    @property
    def class_names(self) -> list[str]:
        """The names of the class folders for training."""
        return self._classes("train")

    @property
    def splits(self) -> list[str]:
        """Those of ``SPLITS`` that there are. ImageNet's ``test`` is not among them, as it has no class folders."""
        if self.test_fraction is not None:
            return ["train", "test"]
        return [split for split in SPLITS if class_folders(Path(self.root) / split)]

    def setup(self, stage: str | None = None) -> None:
        """As ``ImageData.setup``; warns if links bring the same files into two splits."""
        super().setup(stage)
        # With a link from one split into another, a model would be tested on images that it was trained on.
        for first, second in combinations(self._walks, 2):
            path_of = self._walks[first].path_of
            shared = path_of.keys() & self._walks[second].path_of.keys()
            if shared:
                example = path_of[min(shared)]
                rank_zero_only(logger.warning)("%s and %s link to the same images, such as %s", first, second, example)

    def test_arguments(self) -> tuple[str, ...]:
        if self.test_fraction is None:
            return ("test_fraction",)
        return ("test_fraction", "split_seed")

    def read(self, split: str) -> DecodedImages:
        """The images of one of ``splits``. Raises UserError if a class has none, or if ``train`` has other classes."""
        self._check_classes(split)
        folder = self._folder(split)

        # One walk for all classes, so that an image with links from two classes is found once.
        walk = PictureWalk(self._owners())
        paths_of: dict[str, list[str]] = {}
        for name in self.class_names:
            paths_of[name] = walk.pictures(os.path.join(folder, name))
        self.left_out[folder] = walk.left_out
        self._walks[folder] = walk

        # The classifier would have a class that nothing teaches.
        empty = [name for name, paths in paths_of.items() if not paths]
        if empty:
            raise UserError(f"{folder} has no images of {listed(empty)}{_example(walk, empty[0])}: add some")
        if self.test_fraction is not None:
            for name, paths in paths_of.items():
                paths_of[name] = self._part(paths, split, self.test_fraction)
        images = ClassFolders(folder, paths_of, self.picture_channels)
        return DecodedImages(images, self.image_size, self.unreadable, self.resizing, self.picture_channels)

    def _part(self, paths: Sequence[str], split: str, test_fraction: float) -> list[str]:
        """Those images of a class that are for training, or for testing."""
        # Wherever the folder lies, its parts are the same.
        names = [os.path.relpath(path, self._folder(split)) for path in paths]
        test_names = held_out_names(names, test_fraction, self.split_seed)
        part = []
        for path, name in zip(paths, names):
            is_test = name in test_names
            if is_test == (split == "test"):
                part.append(path)
        return part

    def _check_classes(self, split: str) -> None:
        """Raise UserError if a split has other class folders than the training images."""
        expected = set(self._classes("train"))
        present = set(self._classes(split))
        differences = []
        if expected - present:
            differences.append(f"lacks {listed(sorted(expected - present))}")
        if present - expected:
            differences.append(f"has {listed(sorted(present - expected))} besides")
        if differences:
            raise UserError(
                f"{self.root}/{split} {' and '.join(differences)}: its class folders must be those of {self.root}/train"
            )

    def _owners(self) -> dict[str, str]:
        """The class folders of all splits, and whose they are; raises UserError if two of them are one folder."""
        owners: dict[str, str] = {}
        path_of: dict[str, str] = {}
        # With test_fraction, both splits are parts of the same folder.
        for folder in dict.fromkeys(self._folder(split) for split in self.splits):
            for name in class_folders(folder):
                path = os.path.join(folder, name)
                real = os.path.realpath(path)
                if real in path_of:
                    raise UserError(f"{path_of[real]} and {path} are one folder: remove the link that makes them one")
                path_of[real] = path
                owners[path] = f"the images of {path}"
        return owners

    def describe(self) -> str:
        """What ``ImageData.describe`` says, where the images come from, and which files are left out, and why."""
        left_out = describe_left_out(self.left_out_files)
        return "\n".join([super().describe(), *wrapped(self._describe_sources()), *left_out])

    @property
    def left_out_files(self) -> list[tuple[str, str]]:
        """Path and reason of all files that are left out of the splits that were read."""
        files: list[tuple[str, str]] = []
        for of_folder in self.left_out.values():
            files += of_folder
        return files

    def _describe_sources(self) -> str:
        """Which folder is used for what, and which one isn't used."""
        if self.test_fraction is not None:
            drawn = f"test images: {self.test_fraction:.0%} of each class, drawn with split seed {self.split_seed}"
            return f"{self._folder('train')}; {drawn}"
        sources = self.sources
        where = ", ".join(f"{self.root}/{split} for {use}" for use, split in sources.items())
        # A folder that is there and not used, such as ImageNet's ``test`` without classes, may surprise.
        unused = [f"{self.root}/{split}" for split in SPLITS if split not in sources.values()]
        unused = [folder for folder in unused if os.path.isdir(folder)]
        if unused:
            where += f"; {', '.join(unused)} is not used"
        return where

    def _folder(self, split: str) -> str:
        """The folder that holds the class folders of a split."""
        training = os.path.join(self.root, "train")
        if self.test_fraction is None:
            return os.path.join(self.root, split)
        # With test_fraction both splits come from one folder: ``train``, or the root itself.
        if not class_folders(training):
            return self.root
        for other in SPLITS[1:]:
            if class_folders(os.path.join(self.root, other)):
                raise UserError(f"{self.root} has test images, in {self.root}/{other}: leave test_fraction out")
        return training

    def _classes(self, split: str) -> list[str]:
        """The class folders of a split. If there are none, a UserError says where they should be."""
        folder = self._folder(split)
        classes = class_folders(folder)
        if classes:
            return classes

        # There are no class folders: find out which mistake that is.
        if not os.path.isdir(self.root):
            raise UserError(
                f"there is no folder {self.root}: name the one that holds {' and '.join(SPLITS[:2])}, or the one that "
                "holds the class folders themselves, with --data.test_fraction 0.2 (of pack: --test_fraction)"
            )
        self._refuse_too_deep()
        remedy = f"put the images of each class into a folder of its own there, as in {folder}/n01440764/*.JPEG"
        if self.test_fraction is None:
            undivided = self.root
            if class_folders(os.path.join(self.root, "train")):
                undivided = os.path.join(self.root, "train")
            remedy += f", or hold out a part of {undivided}: --data.test_fraction 0.2 (of pack: --test_fraction)"
        raise UserError(f"{folder} has no class folders: {remedy}")

    def _refuse_too_deep(self) -> None:
        """Raise a UserError if the root is rather one of the folders that a root holds, and say which root is meant."""
        root = Path(self.root)
        if root.name in SPLITS and class_folders(root):
            raise UserError(f"{root} is the folder of a split: name the one that holds it, {root.parent}")
        if holds_pictures(root):
            parent = root.parent
            if parent.name in SPLITS:
                parent = parent.parent
            raise UserError(
                f"the pictures lie directly in {root}, as in the folder of a class: name the one that holds the "
                f"classes, {parent}"
            )


def _example(walk: PictureWalk, class_name: str) -> str:
    """The first of the files of a class that were left out, with the reason, in brackets."""
    for path, reason in walk.left_out:
        if class_name in Path(path).parts:
            return f" ({path}: {reason})"
    return ""
