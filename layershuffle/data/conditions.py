"""Test images that were taken under several conditions, such as the corruptions of ImageNet-C."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from layershuffle.data.rereading import in_whole_set
from layershuffle.data.sets import whole_set


@dataclass(frozen=True)
class Conditions:
    """Under which condition each test image was taken.

    Attributes:
        names: the conditions: a corruption and its severity.
        of_image: the index of its condition, int64 [images of the whole test set].
    """

    names: list[tuple[str, int]]
    of_image: Tensor


class ConditionBatches:
    """The batches of a loader, and the condition of each image of the batch that is the current one.

    Args:
        loader: reads test images of ``ImageData`` in their sequence, or a part of them.
        conditions: of the test images.

    Attributes:
        current: the index of the condition of each image of the current batch, int64 [batch].
    """

    def __init__(self, loader: DataLoader, conditions: Conditions) -> None:
        self.loader = loader
        self.conditions = conditions
        self.current = torch.zeros(0, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        images: Any = whole_set(self.loader.dataset)
        batches: Any = self.loader.batch_sampler
        for numbers, batch in zip(batches, self.loader):
            _, indices = in_whole_set(self.loader.dataset, numbers)
            # Images that can't be read are left out of the batch, and marked before it is there.
            readable = [index for index in indices if not images.broken[index]]
            self.current = self.conditions.of_image[readable]
            yield batch
