"""Pictures that a table lists, with one label or several each."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from layershuffle.data.decoding import open_image
from layershuffle.data.preprocessing import DecodedImages
from layershuffle.data.sets import held_out_names
from layershuffle.data.splits import SplitImages
from layershuffle.data.table_file import Row, Table, TableFile
from layershuffle.data.walking import why_not_regular
from layershuffle.errors import UserError
from layershuffle.plurals import counted


class ImageTable(SplitImages):
    """Pictures that a CSV file lists: a row for each, with columns for its path, its label and its split.

    The split of a picture is ``train``, ``val`` or ``test``. As with class folders, ``val`` selects the checkpoint if
    there is a ``test`` too; otherwise a part of the training images is held out for that.

    With ``label_separator`` or ``class_columns`` a picture has several labels, or none. These are uint8 [batch,
    classes] in the batches, 1 where the picture shows the class, and need the objective ``MultiLabel``.

    Args:
        table: the CSV file, in UTF-8 and with a header.
        path_column: the column with the paths of the pictures. Relative ones begin at the folder of the table.
        label_column: the column with the labels.
        split_column: the column with the splits.
        test_fraction: the part of each class, or with several labels of all pictures, that is held out as the test set,
            for a table without splits. Which pictures these are depends on split_seed and their paths alone.
        label_separator: what stands between the labels of a picture, such as ";", if it can have several.
        class_columns: in place of label_column, columns of zeros and ones, one for each class; or "others" for all
            columns but path_column and split_column.
        delimiter: what stands between two columns.
        kwargs: the arguments of ``ImageData``.
    """

    def __init__(
        self,
        table: str,
        path_column: str = "path",
        label_column: str = "label",
        split_column: str = "split",
        test_fraction: float | None = None,
        label_separator: str | None = None,
        class_columns: list[str] | Literal["others"] | None = None,
        delimiter: str = ",",
        **kwargs: Any,
    ) -> None:
        super().__init__(test_fraction, **kwargs)
        if label_separator is not None and class_columns is not None:
            raise UserError("labels stand in one column, or each class has one: give label_separator or class_columns")
        if class_columns == []:
            raise UserError("class_columns is empty: name the columns, or give others for all that are left")
        if label_separator is not None and not label_separator.strip():
            raise UserError("label_separator is what stands between two labels, such as ';', and not empty")
        if len(delimiter) != 1 or delimiter in '"\r\n':
            raise UserError(f"delimiter is one character, such as ',', not {delimiter!r}")
        self.table = os.fspath(table)
        self.path_column = path_column
        self.label_column = label_column
        self.split_column = split_column
        self.label_separator = label_separator
        self.class_columns = class_columns
        self.delimiter = delimiter

    @property
    def label(self) -> str:
        return Path(self.table).stem

    @property
    def has_several_labels(self) -> bool:
        return self.label_separator is not None or self.class_columns is not None

    @cached_property
    def _content(self) -> Table:
        """What the table holds, which is read once."""
        file = TableFile(
            self.table,
            self.delimiter,
            self.path_column,
            self.label_column,
            self.split_column,
            self.label_separator,
            self.class_columns,
        )
        return file.read()

    @property
    def class_names(self) -> list[str]:
        """The classes of all pictures: see ``Table``. Raises UserError if the table can't be read."""
        return self._content.class_names

    @property
    def num_classes(self) -> int:  # type: ignore[override]
        """The number of classes. Raises UserError if there is just one, or none."""
        names = self.class_names
        if len(names) < 2:
            raise UserError(f"{self.table} has {counted(len(names), 'class')}: a model learns to tell several apart")
        return len(names)

    @property
    def splits(self) -> set[str]:
        """Those of ``SPLITS`` that there are. Raises UserError if there are no training or no test images."""
        splits = {row.split for row in self._content.rows}
        self._check_splits(splits)
        if self.test_fraction is not None:
            return {"train", "test"}
        return splits

    def _check_splits(self, splits: set[str]) -> None:
        """Raise UserError if there are no training or no test images."""
        if self.test_fraction is not None:
            if splits != {"train"}:
                raise UserError(f"{self.table} has splits, in the column {self.split_column}: leave test_fraction out")
        elif not self._content.has_splits:
            raise UserError(
                f"{self.table} has no column {self.split_column}: name the one that has train, val and test with "
                "--data.split_column, or hold out a part of the pictures: --data.test_fraction 0.2"
            )
        elif "train" not in splits or len(splits) == 1:
            raise UserError(f"{self.table} has the splits {', '.join(sorted(splits))}: it needs train, and test or val")

    def test_arguments(self) -> tuple[str, ...]:
        if self.test_fraction is None:
            return ("table", "split_column", "test_fraction")
        return ("table", "test_fraction", "split_seed")

    def read(self, split: str) -> DecodedImages:
        """The pictures of a split. Raises UserError if one isn't there, or its class has no training image."""
        rows = self._rows_of(split)
        for row in rows:
            self._check_file(row)
        if split != "train":
            self._check_taught(rows)
        label_of = {name: label for label, name in enumerate(self.class_names)}
        images = ListedImages([row.path for row in rows], self._targets(rows, label_of), self.picture_channels)
        return DecodedImages(images, self.image_size, self.unreadable, self.resizing, self.picture_channels)

    def _rows_of(self, split: str) -> list[Row]:
        rows = self._content.rows
        if self.test_fraction is None:
            return [row for row in rows if row.split == split]
        test_paths = self._test_paths(rows, self.test_fraction)
        is_test = split == "test"
        return [row for row in rows if (row.path in test_paths) == is_test]

    def _test_paths(self, rows: Sequence[Row], test_fraction: float) -> set[str]:
        """The paths of the pictures that are held out as the test set."""
        # A picture with several labels is of no single class of which a part could be held out.
        paths_of: dict[str, list[str]] = {}
        for row in rows:
            of_class = "" if self.has_several_labels else row.labels[0]
            paths_of.setdefault(of_class, []).append(row.path)

        # Wherever the table lies, its parts are the same.
        folder = os.path.dirname(self.table)
        held_out: set[str] = set()
        for paths in paths_of.values():
            path_of = {os.path.relpath(path, folder or "."): path for path in paths}
            names = held_out_names(list(path_of), test_fraction, self.split_seed)
            held_out.update(path_of[name] for name in names)
        return held_out

    def _check_file(self, row: Row) -> None:
        """Raise UserError if there is no file of a picture: the table is wrong, which a broken picture isn't."""
        reason = why_not_regular(row.path)
        if reason is None and not os.path.exists(row.path):
            reason = "isn't there"
        if reason is not None:
            raise UserError(
                f"{self.table}, row {row.number}: {row.path} {reason}: relative paths begin at the table's folder"
            )

    def _check_taught(self, rows: Sequence[Row]) -> None:
        """Raise UserError if a picture to validate or test on shows a class that no training picture shows."""
        # Of a part that is drawn at random, a warning names such classes. And a column is no misspelled label.
        if self.test_fraction is not None or self.class_columns is not None:
            return
        taught: set[str] = set()
        for row in self._rows_of("train"):
            taught.update(row.labels)
        for row in rows:
            for label in row.labels:
                if label not in taught:
                    raise UserError(
                        f"{self.table}, row {row.number}: no training picture has the label {label!r} of this "
                        f"{row.split} picture: mend the label, or add training pictures"
                    )

    def _targets(self, rows: Sequence[Row], label_of: dict[str, int]) -> Tensor:
        """The label of each picture, int64 [images], or where it may have several, uint8 [images, classes]."""
        if not self.has_several_labels:
            return torch.tensor([label_of[row.labels[0]] for row in rows], dtype=torch.int64)
        targets = torch.zeros(len(rows), len(label_of), dtype=torch.uint8)
        for picture, row in enumerate(rows):
            for label in row.labels:
                targets[picture, label_of[label]] = 1
        return targets


class ListedImages(Dataset):
    """Picture files, each with a label or with several.

    Args:
        paths: of the files.
        targets: int64 [images], or uint8 [images, classes] if an image may have several labels.
        channels: how many channels to read images in.

    Attributes:
        samples: path and label of each image.
    """

    def __init__(self, paths: Sequence[str], targets: Tensor, channels: int) -> None:
        self.targets = targets
        self.channels = channels
        self.samples = list(zip(paths, targets.tolist()))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        path, _ = self.samples[index]
        return open_image(path, self.channels), self.targets[index]
