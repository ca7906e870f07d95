"""Finds and opens the splits of a Hugging Face data set in a folder, without a network and without writing anything."""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layershuffle.data.class_folders import class_folders
from layershuffle.data.table_file import sorted_names
from layershuffle.errors import UserError, last_line, shown

if TYPE_CHECKING:
    import datasets

Label = int | str | None
SYNONYMS = {
    "train": ("train", "training"),
    "val": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""What each of ``SPLITS`` may be called, as the library itself reads the names of files (``datasets.data_files``)."""
UNKNOWN = (None, -1)
"""The labels of images whose class isn't public, as in ImageNet's test split."""
_SHARD = re.compile(r"-\d+-of-\d+.*$")
"""What the name of a parquet file has behind the name of its split, if the hub made it: ``train-00000-of-00002``."""


def package() -> Any:
    """Hugging Face's package ``datasets``, which takes seconds to import; raises UserError if it isn't installed."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "sets of Hugging Face need the package datasets: pip install 'layershuffle[huggingface]'"
        ) from error
    return datasets


@dataclass(frozen=True)
class SavedSplit:
    """One split on the disk, which is opened when it is first needed.

    Attributes:
        path: the folder that ``save_to_disk`` wrote, or for parquet files the folder that holds them.
        parquet: the parquet files, if it is made of these.
        image_column: the column with the images; by default the only one of the type Image.
        label_column: the column with the labels; by default the only one of the type ClassLabel.
    """

    path: str
    parquet: Sequence[str] = ()
    image_column: str | None = None
    label_column: str | None = None

    @cached_property
    def _table(self) -> "datasets.Dataset":
        """All columns. Raises UserError if the files can't be read."""
        library = package()
        # These are what the library and Arrow raise for files that are gone, damaged, or of something else.
        try:
            if self.parquet:
                from pyarrow.parquet import read_table

                # The library's own reader would write a copy of the files into the user's cache.
                return library.Dataset(read_table(list(self.parquet)))
            return library.Dataset.load_from_disk(self.path).with_format(None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
            raise UserError(
                f"{self.path} can't be read as a data set that save_to_disk or to_parquet wrote "
                f"({type(error).__name__}: {last_line(error)[:300]}): save it again"
            ) from error

    @cached_property
    def version(self) -> str:
        """What stands for the data files: it changes when one of them does."""
        # The library calls the files that it has opened its cache.
        paths = list(self.parquet) or [file["filename"] for file in self._table.cache_files]
        files = []
        for path in paths:
            stat = os.stat(path)
            files.append((os.path.basename(path), stat.st_size, stat.st_mtime_ns))
        return hashlib.sha256(repr(files).encode()).hexdigest()

    @cached_property
    def images(self) -> "datasets.Dataset":
        """The column with the images alone, undecoded: {"bytes": ..., "path": ...} of each row, one of them None."""
        library = package()
        column = self._column(self.image_column, library.Image, "image_column")
        only_images = self._table.select_columns([column])
        if column != "image":
            only_images = only_images.rename_column(column, "image")
        try:
            return only_images.cast_column("image", library.Image(decode=False))
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"the column {column} of {self.path} holds no images ({last_line(error)[:200]}): name another one with "
                "--data.image_column"
            ) from error

    @cached_property
    def labels(self) -> list[Label]:
        """The label of each row: the number of its class where these have names, otherwise what the column holds."""
        column = self._label_column
        return self._table.select_columns([column])[column][:]

    @property
    def is_labelled(self) -> bool:
        """Whether some label is known."""
        return any(label not in UNKNOWN for label in self.labels)

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, if the column has the type ClassLabel."""
        return getattr(self._table.features[self._label_column], "names", None)

    @cached_property
    def _label_column(self) -> str:
        """The column with the labels; raises UserError if it can't be one."""
        library = package()
        column = self._column(self.label_column, library.ClassLabel, "label_column")
        kind = self._table.features[column]
        is_value = isinstance(kind, library.Value) and re.fullmatch(r"u?int\d+|(large_)?string", kind.dtype) is not None
        if not isinstance(kind, library.ClassLabel) and not is_value:
            raise UserError(
                f"the column {column} of {self.path} holds {shown(str(kind))}, but each image needs one label, a text "
                "or a whole number: name another column with --data.label_column"
            )
        return column

    def _column(self, chosen: str | None, kind: type, option: str) -> str:
        """The column that the user has chosen, or the only one of a type; a UserError names the option."""
        features = self._table.features
        remedy = f"name one with --data.{option} (of pack: --{option})"
        if chosen is not None:
            if chosen not in features:
                raise UserError(f"{self.path} has no column {chosen}, but {', '.join(features)}: {remedy}")
            return chosen
        of_kind = [name for name, feature in features.items() if isinstance(feature, kind)]
        if len(of_kind) == 1:
            return of_kind[0]
        if of_kind:
            raise UserError(
                f"{self.path} has several columns of the type {kind.__name__}, {', '.join(of_kind)}: {remedy}"
            )
        raise UserError(f"{self.path} has no column of the type {kind.__name__}, but {', '.join(features)}: {remedy}")


def names_of(splits: Sequence[SavedSplit]) -> list[str]:
    """The names of the classes, in the sequence of their labels; raises UserError if the splits have different ones."""
    first = splits[0].class_names
    for split in splits[1:]:
        if split.class_names != first:
            raise UserError(f"{split.path} has other classes than {splits[0].path}: save both with the same ClassLabel")
    if first is not None:
        return list(first)
    # Without the type ClassLabel, the classes are the labels that occur.
    found: set[str] = set()
    for split in splits:
        found.update(str(label) for label in split.labels if label not in UNKNOWN)
    return sorted_names(found)


def find_splits(root: str, image_column: str | None = None, label_column: str | None = None) -> dict[str, SavedSplit]:
    """The splits in a folder, by their names. What ``Dataset.save_to_disk`` wrote is one split without a name, "".

    Args:
        root: what ``DatasetDict.save_to_disk`` or ``Dataset.save_to_disk`` wrote, or a folder with parquet files, such
            as ``train-00000-of-00001.parquet``, ``data/train.parquet`` or ``train/0000.parquet``.
        image_column: see ``SavedSplit``.
        label_column: see ``SavedSplit``.

    Raises:
        UserError: if there is none of these.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {root}, and nothing is fetched from the hub: save the set first, "
            "load_dataset(...).save_to_disk(FOLDER), and name this folder"
        )
    if _is_saved(folder):
        return {"": SavedSplit(root, (), image_column, label_column)}
    names = [name for name in class_folders(folder) if _is_saved(folder / name)]
    if names:
        return {name: SavedSplit(str(folder / name), (), image_column, label_column) for name in names}

    files_of = _parquet_files(folder)
    if not files_of:
        raise UserError(
            f"{root} holds neither what save_to_disk writes nor parquet files: name a folder that does, or if it holds "
            "class folders, read them with --data ImageFolders"
        )
    splits = {}
    for name, files in files_of.items():
        parents = {os.path.dirname(file) for file in files}
        # Several configurations of a set on the hub, such as those of several languages, lie side by side.
        if len(parents) > 1:
            raise UserError(
                f"several folders have parquet files of {name}: name one of them, {', '.join(sorted(parents))}"
            )
        splits[name] = SavedSplit(parents.pop(), tuple(files), image_column, label_column)
    return splits


def holds_saved_set(folder: Path) -> bool:
    """Whether a folder holds what ``find_splits`` finds."""
    return (
        _is_saved(folder)
        or any(_is_saved(folder / name) for name in class_folders(folder))
        or bool(_parquet_files(folder))
    )


def _is_saved(folder: Path) -> bool:
    """Whether ``Dataset.save_to_disk`` wrote a folder."""
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _parquet_files(folder: Path) -> dict[str, list[str]]:
    """The parquet files in a folder or in the folders in it, by the names of their splits."""
    files_of: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.parquet")) or sorted(folder.glob("*/*.parquet")):
        name = _SHARD.sub("", path.stem)
        # The hub's own conversion names a file by its number alone, in a folder with the name of the split.
        if name.isdecimal():
            name = path.parent.name
        files_of.setdefault(name, []).append(str(path))
    return files_of
