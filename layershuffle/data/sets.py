"""Sets of images: in memory, their labels, and random parts of them."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from layershuffle.data.preprocessing import DecodedImages
from layershuffle.orders.order import seeded

_LABELS = ("targets", "labels", "y", "_labels")
"""What data sets, also torchvision's, call the labels of all their images."""


class TensorImages(Dataset):
    """Images that fit in memory: uint8 [images, channels, height, width] and int64 labels [images], on any device."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images = images
        self.labels = labels

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
        index = torch.tensor(indices, dtype=torch.int64, pin_memory=self.images.is_cuda)
        index = index.to(self.images.device, non_blocking=True)
        return self.images[index], self.labels[index]


def whole_set(images: Any) -> Any:
    """The set that a Subset, or a Subset of one, is a part of; any other set is this itself."""
    while isinstance(images, Subset):
        images = images.dataset
    return images


def labels_of(images: Any) -> Tensor | None:
    """The labels of a data set, int64 [images], without reading its images; None if it doesn't tell them."""
    if isinstance(images, Subset):
        labels = labels_of(images.dataset)
        if labels is None:
            return None
        return labels[torch.tensor(images.indices, dtype=torch.int64)]
    if isinstance(images, DecodedImages):
        return labels_of(images.images)

    for name in _LABELS:
        if hasattr(images, name):
            return _as_labels(getattr(images, name))
    return None


def _as_labels(values: Any) -> Tensor | None:
    """int64 [images], or None if the values aren't labels."""
    if values is None:
        return None
    try:
        return torch.as_tensor(values, dtype=torch.int64).flatten()
    except (TypeError, ValueError, RuntimeError):
        return None


def split_images(images: Dataset, count: int, seed: int) -> tuple[Subset, Subset]:
    """``count`` random images and the rest, both in their original sequence."""
    rng = seeded(seed, "split")
    shuffled = sorted(range(len(images)), key=lambda _: rng.random())  # type: ignore[arg-type]
    return Subset(images, sorted(shuffled[:count])), Subset(images, sorted(shuffled[count:]))
