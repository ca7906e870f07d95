"""Reads a CSV file with a row for each picture: where it lies, what it shows, and to which split it belongs."""

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from layershuffle.data.splits import SPLITS
from layershuffle.data.walking import why_not_regular
from layershuffle.errors import UserError, shown

if TYPE_CHECKING:
    from _csv import Reader  # the type of what csv.reader returns has no public name

YES_OR_NO = {"0": False, "0.0": False, "1": True, "1.0": True}
"""What a cell of a column for one class can have."""


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        number: where the row stands in the file, from 1. The header is row 1, as in a spreadsheet.
        path: of the picture.
        labels: what it shows: one label, or with several labels per picture any number.
        split: one of ``SPLITS``.
    """

    number: int
    path: str
    labels: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class TableFile:
    """A CSV file with a row for each picture, and which column has what.

    Attributes:
        path: of the file.
        delimiter: what stands between two cells.
        path_column: the column with the pictures' paths. Those that aren't absolute begin at the folder of the file.
        label_column: the column with the labels.
        split_column: the column that says to which of ``SPLITS`` a picture belongs. Without this column, all belong to
            "train".
        separator: what stands between two labels of a cell; None if each cell is one label.
        class_columns: in place of ``label_column``, columns of zeros and ones, one for each class, or "others" for all
            columns but those of the paths and the splits.
    """

    path: str
    delimiter: str = ","
    path_column: str = "path"
    label_column: str = "label"
    split_column: str = "split"
    separator: str | None = None
    class_columns: list[str] | Literal["others"] | None = None

    def read(self) -> "Table":
        """Read the whole file.

        Raises:
            UserError: if it can't be read, lacks a column, or a row can't be what it should be.
        """
        # Reading a pipe or a device may never end.
        reason = why_not_regular(self.path)
        if reason is not None:
            raise UserError(f"{self.path} is {reason}: name a CSV file with a row for each picture")
        try:
            # Excel writes a mark at the beginning, which utf-8-sig leaves out.
            with open(self.path, encoding="utf-8-sig", newline="") as file:
                lines = csv.reader(file, delimiter=self.delimiter, strict=True)
                return _TableReader(self, lines).read()
        except OSError as error:
            raise UserError(f"{self.path} can't be read ({error.strerror}): name a CSV file") from error
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path} is no text in UTF-8 ({error.reason}): save it as CSV in UTF-8") from error
        except csv.Error as error:
            raise UserError(f"{self.path} is no CSV file: row {lines.line_num}: {error}") from error


@dataclass(frozen=True)
class Table:
    """What a table file holds.

    Attributes:
        rows: one for each picture.
        class_names: the classes in the sequence of their labels: that of the columns where each class has one, that of
            the numbers where all are whole numbers, otherwise the alphabetical one.
        has_splits: whether the file says to which split a picture belongs.
    """

    rows: list[Row]
    class_names: list[str]
    has_splits: bool


class _TableReader:
    """Reads the rows of an open table.

    Args:
        about: what is known about the file.
        lines: the cells of each of its lines; ``line_num`` counts them.
    """

    def __init__(self, about: TableFile, lines: "Reader") -> None:
        self.about = about
        self.lines = lines
        self.folder = os.path.dirname(about.path)
        self.header = [name.strip() for name in next(lines, [])]
        self.path_index = self._index(about.path_column, "path_column")
        self.split_index: int | None = None
        if about.split_column in self.header:
            self.split_index = self._index(about.split_column, "split_column")
        self.label_index = -1
        self.class_indices: dict[str, int] = {}
        if about.class_columns is None:
            self.label_index = self._index(about.label_column, "label_column")
        else:
            for name in self._class_columns():
                self.class_indices[name] = self._index(name, "class_columns")

    def read(self) -> Table:
        """Read all rows; raises UserError if a picture comes twice, or there is none."""
        rows = []
        row_of: dict[str, Row] = {}
        for row in self._rows():
            # The splits would share a picture, or it would have two labels of which one is wrong.
            path = os.path.normpath(row.path)
            if path in row_of:
                self._refuse(f"{row.path} is in row {row_of[path].number} already: a picture has one row")
            row_of[path] = row
            rows.append(row)
        if not rows:
            raise UserError(f"{self.about.path} has no rows below its header: give it one for each picture")

        # Where each class has a column, the columns name the classes. Otherwise they are what the rows name.
        names = list(self.class_indices)
        if self.about.class_columns is None:
            found: set[str] = set()
            for row in rows:
                found.update(row.labels)
            names = sorted_names(found)
        return Table(rows, names, self.split_index is not None)

    def _rows(self) -> Iterator[Row]:
        for cells in self.lines:
            # Files may end with empty lines.
            if not cells:
                continue
            if len(cells) != len(self.header):
                self._refuse(f"the row has {len(cells)} cells and the header {len(self.header)}: mend one of them")
            path = cells[self.path_index]
            if not path:
                self._refuse(f"the column {self.about.path_column} is empty: it names the file of a picture")
            yield Row(self.lines.line_num, os.path.join(self.folder, path), self._labels(cells), self._split(cells))

    def _labels(self, cells: Sequence[str]) -> tuple[str, ...]:
        """What the picture of a row shows; raises UserError if the cells can't say that."""
        if self.about.class_columns is not None:
            columns = self.class_indices.items()
            return tuple(name for name, index in columns if self._is_one(name, cells[index]))

        text = cells[self.label_index].strip()
        if self.about.separator is None:
            if not text:
                self._refuse(
                    f"the column {self.about.label_column} is empty: each picture has one label, or "
                    "with --data.label_separator any number"
                )
            return (text,)
        # A picture may show none of the classes, and name one twice.
        labels = [label.strip() for label in text.split(self.about.separator)]
        return tuple(dict.fromkeys(label for label in labels if label))

    def _is_one(self, name: str, cell: str) -> bool:
        """Whether the cell of a class's column is 1; raises UserError if it is neither 1 nor 0."""
        value = YES_OR_NO.get(cell.strip())
        if value is None:
            self._refuse(f"the column {name} has {shown(cell)}: it is 1 if the picture shows that, otherwise 0")
        return value

    def _split(self, cells: Sequence[str]) -> str:
        if self.split_index is None:
            return "train"
        split = cells[self.split_index].strip()
        if split not in SPLITS:
            self._refuse(
                f"the column {self.about.split_column} has {shown(split)}: it is one of {', '.join(SPLITS)} (or "
                "name another column: --data.split_column)"
            )
        return split

    def _class_columns(self) -> list[str]:
        """The names of the columns of classes, each once."""
        about = self.about
        if isinstance(about.class_columns, list):
            return list(dict.fromkeys(about.class_columns))
        return [name for name in self.header if name not in (about.path_column, about.split_column)]

    def _index(self, name: str, option: str) -> int:
        """The place of a column; raises UserError that names the option if there isn't exactly one of that name."""
        count = self.header.count(name)
        if count == 1:
            return self.header.index(name)
        columns = shown(", ".join(self.header))
        if count:
            raise UserError(f"{self.about.path} has {count} columns {name}: rename all but one")
        raise UserError(
            f"{self.about.path} has no column {name}, but {columns}: name the column with --data.{option}, or what "
            "stands between two columns with --data.delimiter"
        )

    def _refuse(self, reason: str) -> NoReturn:
        raise UserError(f"{self.about.path}, row {self.lines.line_num}: {reason}")


def sorted_names(names: set[str]) -> list[str]:
    """The names of classes in the sequence of their labels: that of the numbers if all are, or the alphabetical one."""
    # Numbers as texts would stand in the sequence 0, 1, 10, 2.
    if all(name.isascii() and name.isdecimal() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)
