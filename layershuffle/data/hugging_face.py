"""Image classification sets of Hugging Face's ``datasets`` that are saved in a folder."""

import io
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

from layershuffle.data.decoding import open_image
from layershuffle.data.description import wrapped
from layershuffle.data.preprocessing import DecodedImages
from layershuffle.data.saved_splits import SYNONYMS, UNKNOWN, SavedSplit, find_splits, names_of
from layershuffle.data.sets import held_out_names
from layershuffle.data.splits import SPLITS, SplitImages
from layershuffle.data.walking import why_not_regular
from layershuffle.errors import UserError
from layershuffle.plurals import counted


class HuggingFaceImages(SplitImages):
    """A set in a folder: what ``save_to_disk`` of Hugging Face's ``datasets`` wrote, or parquet files.

    Nothing is fetched, and nothing is written. Folders of ``save_to_disk`` are read image by image; parquet files are
    read into memory. Images are decoded as those of class folders are, and come in the sequence of their classes.

    A split whose labels are all unknown, as those of ImageNet's test images, is left out.

    Args:
        root: the folder.
        image_column: the column with the images; by default the only one of the type Image.
        label_column: the column with the labels; by default the only one of the type ClassLabel. One of another type
            holds texts or whole numbers.
        train_split: the name of the split to train on; by default train or training.
        val_split: the name of the split that selects the checkpoint; by default validation, valid, val or dev.
        test_split: the name of the split to test on; by default test, testing, eval or evaluation.
        test_fraction: the part of each class that is held out as the test set, for a set without such a split. Which
            images these are depends on split_seed and the numbers of their rows alone.
        kwargs: the arguments of ``ImageData``. With val_fraction 0, the test images select the checkpoint in any case.
    """

    def __init__(
        self,
        root: str,
        image_column: str | None = None,
        label_column: str | None = None,
        train_split: str | None = None,
        val_split: str | None = None,
        test_split: str | None = None,
        test_fraction: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(test_fraction, **kwargs)
        self.root = os.fspath(root)
        self.image_column = image_column
        self.label_column = label_column
        self.train_split = train_split
        self.val_split = val_split
        self.test_split = test_split

    @property
    def label(self) -> str:
        return Path(self.root).name

    @property
    def class_names(self) -> list[str]:
        """The names of the classes. Raises UserError if the folder can't be read."""
        return self._class_names

    @cached_property
    def _class_names(self) -> list[str]:
        return names_of(list(self._splits.values()))

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of classes. Raises UserError if there is just one, or none."""
        names = self.class_names
        if len(names) < 2:
            raise UserError(f"{self.root} has {counted(len(names), 'class')}: a model learns to tell several apart")
        return len(names)

    @property
    def splits(self) -> list[str]:
        """Those of ``SPLITS`` that there are. Raises UserError if there are no training or no test images."""
        splits = list(self._splits)
        if self.test_fraction is not None:
            if len(splits) > 1:
                raise UserError(f"{self.root} has test images, in {self._name_of[splits[1]]}: leave test_fraction out")
            return ["train", "test"]
        if len(splits) == 1:
            raise UserError(
                f"{self.root} has no labelled split {' or '.join(SYNONYMS['test'] + SYNONYMS['val'])}: name it with "
                "--data.test_split, or hold out a part of the training images: --data.test_fraction 0.2 (of pack: "
                "--test_fraction)"
            )
        return splits

    @cached_property
    def _saved(self) -> dict[str, SavedSplit]:
        """All splits in the folder, by their own names."""
        return find_splits(self.root, self.image_column, self.label_column)

    @cached_property
    def _name_of(self) -> dict[str, str]:
        """What those of ``SPLITS`` that there are, labelled or not, are called in the folder."""
        # A set that was never divided is there to train on.
        if list(self._saved) == [""]:
            return {"train": ""}
        chosen = {"train": self.train_split, "val": self.val_split, "test": self.test_split}
        # A split that the user has chosen for one purpose is not taken for another because of its name.
        free = [name for name in self._saved if name not in chosen.values()]
        name_of = {}
        for split in SPLITS:
            name = chosen[split]
            if name is None:
                name = self._only_one([name for name in SYNONYMS[split] if name in free], split)
            elif name not in self._saved:
                raise UserError(f"{self.root} has no split {name}, but {', '.join(self._saved)}")
            if name is not None:
                name_of[split] = name
        if "train" not in name_of:
            raise UserError(
                f"{self.root} has the splits {', '.join(self._saved)}: name the one to train on with --data.train_split"
            )
        return name_of

    def _only_one(self, names: Sequence[str], split: str) -> str | None:
        """The only one of these names, or None if there is none; raises UserError if there are several."""
        if len(names) > 1:
            raise UserError(f"{self.root} has the splits {' and '.join(names)}: choose one with --data.{split}_split")
        return names[0] if names else None

    @cached_property
    def _splits(self) -> dict[str, SavedSplit]:
        """Those of ``SPLITS`` that there are and whose labels are known; the training images come first."""
        splits = {}
        for split, name in self._name_of.items():
            saved = self._saved[name]
            if saved.is_labelled:
                splits[split] = saved
            elif split == "train":
                raise UserError(f"the images of {saved.path} have no labels: name the column with --data.label_column")
        return splits

    def test_arguments(self) -> tuple[str, ...]:
        arguments = ("train_split", "val_split", "test_split", "test_fraction")
        return arguments if self.test_fraction is None else (*arguments, "split_seed")

    def read(self, split: str) -> DecodedImages:
        """The images of one of ``splits``. Raises UserError if they can't be read, or some have no label."""
        source = "train" if self.test_fraction is not None else split
        saved = self._splits[source]
        rows_of = self._rows_by_class(saved)
        if self.test_fraction is not None:
            for name, rows in rows_of.items():
                rows_of[name] = self._part(rows, split, self.test_fraction)
        images = SavedImages(saved, rows_of, self.picture_channels)
        return DecodedImages(images, self.image_size, self.unreadable, self.resizing, self.picture_channels)

    def _rows_by_class(self, saved: SavedSplit) -> dict[str, list[int]]:
        """The numbers of the rows of each class, in the sequence of the classes."""
        names = self.class_names
        rows_of: dict[str, list[int]] = {name: [] for name in names}
        # A column of the type ClassLabel holds numbers of classes, and any other the names themselves.
        has_numbers = saved.class_names is not None
        for row, label in enumerate(saved.labels):
            if label in UNKNOWN:
                raise UserError(f"{saved.path}, row {row}: it has no label, and others have: leave it out of the set")
            if has_numbers and not 0 <= int(label) < len(names):
                raise UserError(
                    f"{saved.path}, row {row}: there is no class {label}: save the set with all its classes"
                )
            name = names[int(label)] if has_numbers else str(label)
            rows_of[name].append(row)
        return rows_of

    def _part(self, rows: Sequence[int], split: str, test_fraction: float) -> list[int]:
        """Those rows of a class that are for training, or for testing."""
        test_rows = held_out_names([str(row) for row in rows], test_fraction, self.split_seed)
        is_test = split == "test"
        return [row for row in rows if (str(row) in test_rows) == is_test]

    def describe(self) -> str:
        """What ``ImageData.describe`` says, and where the images come from."""
        return "\n".join([super().describe(), *wrapped(self._describe_sources())])

    def _describe_sources(self) -> str:
        if self.test_fraction is not None:
            drawn = f"test images: {self.test_fraction:.0%} of each class, drawn with split seed {self.split_seed}"
            return f"{self._splits['train'].path}; {drawn}"
        used = {split: self._name_of[split] for split in self.sources.values()}
        where = ", ".join(f"{used[split]} for {use}" for use, split in self.sources.items())
        text = f"{self.root}: {where}"
        for name, saved in self._saved.items():
            if name in used.values():
                continue
            text += f"; {name} is not used"
            # A split with another name would not be used in any case, whether it has labels or not.
            if name in self._name_of.values() and not saved.is_labelled:
                text += ", as it has no labels"
        return text


class SavedImages(Dataset):
    """Images and labels of a split that was saved.

    Args:
        saved: the split.
        rows_of: the numbers of the rows of each class, by its name, in the sequence of the labels.
        channels: how many channels to read images in.

    Attributes:
        classes: the names of the classes.
        samples: what error messages call each image, and its label.
        targets: the label of each image.
    """

    def __init__(self, saved: SavedSplit, rows_of: dict[str, list[int]], channels: int) -> None:
        self.saved = saved
        self.channels = channels
        self.classes = list(rows_of)
        self.rows: list[int] = []
        self.targets: list[int] = []
        for label, rows in enumerate(rows_of.values()):
            self.rows += rows
            self.targets += [label] * len(rows)
        self.samples = [(f"{saved.path}, row {row}", label) for row, label in zip(self.rows, self.targets)]
        # What is wrong with the column should be known before the first image is read.
        self.images = saved.images

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        try:
            return open_image(self.file(index), self.channels), self.targets[index]
        except UnidentifiedImageError as error:  # which would name an object in memory
            raise ValueError("no image that Pillow can read") from error

    def file(self, index: int) -> str | io.BytesIO:
        """The file of an image: its bytes, or its path. Raises ValueError if the row has neither."""
        image = self.images[self.rows[index]]["image"] or {}
        if image.get("bytes"):
            return io.BytesIO(image["bytes"])
        if not image.get("path"):
            raise ValueError("the row has no image")
        # Relative paths are those of files beside the set. What begins like an address is no file either.
        path = os.path.join(self.saved.path, image["path"])
        reason = why_not_regular(path)
        if reason is not None:
            raise ValueError(f"{path} is {reason}")
        return path

    def version(self, index: int) -> tuple[Any, ...]:
        """What stands for the file of an image and its label: it changes when the data files do."""
        return (self.rows[index], self.targets[index], self.saved.version)
