"""Data sets that come in splits with names: ``train``, ``val`` and ``test``."""

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import Any, Literal

from torch.utils.data import Dataset

from layershuffle.data.module import ImageData
from layershuffle.errors import UserError

SPLITS = ("train", "val", "test")
"""The splits that a data set can have."""


class SplitImages(ImageData, ABC):
    """A data set that comes in splits with names. A subclass says which ``splits`` there are, and implements ``read``.

    The test images are those of ``test`` or, without that, of ``val``. The checkpoint is selected on ``val`` if there
    is a ``test`` too. Otherwise a part of the training images is held out for that.

    Args:
        test_fraction: the part of each class that is held out as the test set, for data that has no ``test`` and
            ``val``. Which images these are depends on split_seed and their names alone.
        kwargs: the arguments of ``ImageData``. With val_fraction 0, the test images select the checkpoint in any case.
    """

    def __init__(self, test_fraction: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if test_fraction is not None and not 0 < test_fraction < 1:
            raise UserError(f"test_fraction is a fraction above 0 and below 1, not {test_fraction}")
        self.test_fraction = test_fraction

    @property
    @abstractmethod
    def splits(self) -> Collection[str]:
        """Those of ``SPLITS`` that there are; with ``test_fraction``, ``train`` and ``test``."""

    @abstractmethod
    def read(self, split: str) -> Dataset:
        """The images of one of ``splits``, see ``ImageData.load``."""

    @property
    def sources(self) -> dict[str, str]:
        """The split from which images come: for training, for testing, and if not held out, for validation."""
        splits = self.splits
        sources = {"training": "train", "testing": "val"}
        # A split ``val`` without a ``test`` is what the literature reports accuracy on, as with ImageNet.
        if "test" in splits:
            sources["testing"] = "test"
            if self.val_fraction and "val" in splits:
                sources["validation"] = "val"
        return sources

    def load(self, train: bool) -> Dataset:
        return self.read(self.sources["training" if train else "testing"])

    def load_validation(self) -> Dataset | None:
        if "validation" not in self.sources:
            return None
        return self.read(self.sources["validation"])

    def deciding_arguments(self, split: Literal["val", "test"]) -> tuple[str, ...]:
        # Nothing is held out where the validation images have a split of their own.
        return super().deciding_arguments("test" if "validation" in self.sources else split)
