"""Sets of images: in memory, their labels, and random parts of them."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from layershuffle.data.preprocessing import DecodedImages
from layershuffle.errors import UserError
from layershuffle.orders.order import seeded
from layershuffle.plurals import counted

_LABELS = ("targets", "labels", "y", "_labels")
"""What data sets, also torchvision's, call the labels of all their images."""


class TensorImages(Dataset):
    """Images that fit in memory: uint8 [images, channels, height, width] and int64 labels [images], on any device."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

    @property
    def channels(self) -> int:
        """How many channels the images have."""
        return self.images.shape[1]

    def move(self, device: torch.device) -> None:
        """Move the images to ``device``, where batches are then taken, also those of Subsets of this set."""
        self.images = self.images.to(device)
        self.labels = self.labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch. Only the indices are copied to the device, without waiting for it."""
        # A copy to a GPU can go on by itself only from pinned memory.
        index = torch.tensor(indices, dtype=torch.int64, pin_memory=self.images.is_cuda)
        index = index.to(self.images.device, non_blocking=True)
        return self.images[index], self.labels[index]


def whole_set(images: Any) -> Any:
    """The set that a Subset, or a Subset of one, is a part of; any other set is this itself."""
    while isinstance(images, Subset):
        images = images.dataset
    return images


def labels_of(images: Any) -> Tensor | None:
    """The labels of a data set, int64 [images], without reading its images.

    None if it doesn't tell them, or an image can have several.
    """
    labels = _told_labels(images)
    if labels is None:
        return None
    # Some sets have them in a column. What has another length is something else, such as several labels of each image.
    labels = labels.flatten()
    return labels if len(labels) == len(images) else None


def images_by_class(images: Any, num_classes: int) -> Tensor | None:
    """How many images show each class, int64 [classes], without reading them; None if the set doesn't tell it."""
    labels = labels_of(images)
    if labels is not None:
        return labels.bincount(minlength=num_classes)
    # Where an image can show several classes, each has a column of zeros and ones.
    labels = _told_labels(images)
    if labels is None or labels.shape != (len(images), num_classes):
        return None
    return labels.sum(dim=0)


def _told_labels(images: Any) -> Tensor | None:
    """int64 [images], or [images, several]; None if the set doesn't tell them."""
    # What wraps another set has its labels, without those of images that it leaves out.
    if isinstance(images, Subset):
        labels = _told_labels(images.dataset)
        if labels is None or len(labels) != len(images.dataset):  # type: ignore[arg-type]
            return None
        return labels[torch.tensor(images.indices, dtype=torch.int64)]
    if isinstance(images, DecodedImages):
        return _told_labels(images.images)

    for name in _LABELS:
        if hasattr(images, name):
            return _as_labels(getattr(images, name))
    return None


def _as_labels(values: Any) -> Tensor | None:
    """int64 [images] or [images, several], or None if the values aren't labels."""
    if values is None:
        return None
    try:
        return torch.as_tensor(values, dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError):
        return None


def paths_of(images: Any) -> list[str] | None:
    """The path of each image's file, "" for those that turned out to be broken; None if the set has no files."""
    if isinstance(images, Subset):
        paths = paths_of(images.dataset)
        if paths is None:
            return None
        return [paths[index] for index in images.indices]
    if not isinstance(images, DecodedImages) or not hasattr(images.images, "samples"):
        return None
    paths = []
    for (path, _), is_broken in zip(images.images.samples, images.broken.tolist()):
        paths.append("" if is_broken else path)
    return paths


def check_labels(labels: Tensor, num_classes: int, owner: str) -> None:
    """Raise a UserError that names the owner if its labels, int64 [images], aren't from 0 to num_classes - 1."""
    lowest = int(labels.min())
    highest = int(labels.max())
    if lowest < 0:
        raise UserError(f"{owner} has the label {lowest}: labels are from 0 to num_classes - 1, {num_classes - 1}")
    if highest >= num_classes:
        raise UserError(f"num_classes is {num_classes}, but {owner} has labels up to {highest}")


def split_images(images: Dataset, count: int, seed: int) -> tuple[Subset, Subset]:
    """``count`` random images and the rest, both in their original sequence."""
    # Sorting by random numbers needs nothing of Python's generator but ``random``, whose numbers stay the same in every
    # version of Python. Those of ``shuffle`` may change, and with them the images that a model was tested on.
    rng = seeded(seed, "split")
    shuffled = sorted(range(len(images)), key=lambda _: rng.random())  # type: ignore[arg-type]
    return Subset(images, sorted(shuffled[:count])), Subset(images, sorted(shuffled[count:]))


def split_by_class(images: Dataset, count: int, seed: int) -> tuple[Subset, Subset]:
    """Like ``split_images``, but with the same part of every class, or at random if the set doesn't tell its labels.

    The first part has an image of every class if ``count`` allows it. So has the second part, of every class that has
    two.
    """
    labels = labels_of(images)
    if labels is None:
        return split_images(images, count, seed)

    # Each class's images are spread evenly from 0 to 1, in a random sequence. The first part takes the smallest places.
    rng = seeded(seed, "split")
    shuffled = sorted(range(len(labels)), key=lambda _: rng.random())
    label_of = labels.tolist()
    size_of = Counter(label_of)
    images_before: Counter[int] = Counter()
    places = {}
    for index in shuffled:
        label = label_of[index]
        places[index] = images_before[label] / max(1, size_of[label] - 1)
        images_before[label] += 1

    # Sorting is stable: which class gives one more than another is random, too.
    spread = sorted(shuffled, key=places.__getitem__)
    return Subset(images, sorted(spread[:count])), Subset(images, sorted(spread[count:]))


@dataclass(frozen=True)
class Splitter:
    """Chooses images at random: those that are used at all, and those that are held out.

    Attributes:
        seed: decides every choice.
        stratified: whether to take the same part of every class.
    """

    seed: int
    stratified: bool

    def divide(self, images: Dataset, count: int) -> tuple[Subset, Subset]:
        """``count`` of the images, and the rest."""
        if self.stratified:
            return split_by_class(images, count, self.seed)
        return split_images(images, count, self.seed)

    def choose(self, images: Dataset, count: int | None, split: str) -> Dataset:
        """``count`` of the images of a split, or all; raises UserError if there are not so many."""
        if count is None:
            return images
        total = len(images)  # type: ignore[arg-type]
        if not 1 <= count <= total:
            images_in_all = counted(total, "image")
            raise UserError(
                f"{split}_images is {count}, but the {split} set has {images_in_all}: choose from 1 to {total:,}"
            )
        chosen, _ = self.divide(images, count)
        return chosen

    def hold_out(self, images: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
        """Split training images into those to train on and a ``fraction`` to validate on, which is never empty."""
        total = len(images)  # type: ignore[arg-type]
        held_out = max(1, round(total * fraction))
        # The first part of a split by class has an image of every class, which training needs more than validation.
        if self.stratified:
            return split_by_class(images, total - held_out, self.seed)
        # Published results held out the first part, so that another sequence would change them.
        val, train = split_images(images, held_out, self.seed)
        return train, val


def held_out_names(names: Sequence[str], fraction: float, seed: int) -> set[str]:
    """A random part of the images of a class, by the names of their files.

    Names keep their sequence when others are added, so that hardly an image moves into or out of the part. Of two or
    more images, at least one is in it and at least one isn't.
    """
    # Each name has a random number of its own, whatever other names there are.
    count = min(max(1, round(fraction * len(names))), len(names) - 1)
    shuffled = sorted(names, key=lambda name: seeded(seed, "test", os.fsencode(name).hex()).random())
    return set(shuffled[:count])
