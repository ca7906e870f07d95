"""Reads a batch of a training again, once it is over: which images it had is a function of seed, epoch and batch."""

from copy import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Subset

from layershuffle.data.preprocessing import DecodedImages
from layershuffle.data.samplers import TrainingSampler


@dataclass(frozen=True)
class TrainingBatch:
    """A batch as a training has read it, augmented if it augments, and on the device that holds the images.

    Attributes:
        images: uint8 [batch, channels, height, width].
        labels: int64 [batch].
        indices: the number of each image in the whole training set, from 0.
        paths: the file of each image, if the images are files that the set knows.
    """

    images: Tensor
    labels: Tensor
    indices: list[int]
    paths: list[str] | None


def read_again(loader: Any, epoch: int, batch: int, rank: int) -> TrainingBatch | None:
    """The batch that process ``rank`` has trained on in an epoch, or None if the loader isn't one of ``ImageData``.

    Args:
        loader: the training's.
        epoch: from 0.
        batch: its number in the epoch and the process, from 0.
        rank: the process.
    """
    # Lightning puts another sampler in its place if it is to overfit a few batches.
    sampler = copy(getattr(loader, "sampler", None))
    if not isinstance(sampler, TrainingSampler):
        return None
    sampler.set_epoch(epoch)
    sampler.rank = rank
    first = batch * sampler.batch_size
    keys = sampler.keys()[first : first + sampler.batch_size]

    # A loader without workers, which reads and collates as the training's does.
    again = DataLoader(loader.dataset, batch_sampler=[keys], collate_fn=loader.collate_fn)
    images, labels = next(iter(again))
    # Images that are augmented are asked for by (epoch, index), and others by the index alone.
    numbers = [key[1] if isinstance(key, tuple) else key for key in keys]
    whole, indices = in_whole_set(loader.dataset, numbers)
    paths = None
    if hasattr(whole, "samples"):
        paths = [str(whole.samples[index][0]) for index in indices]
    return TrainingBatch(images, labels, indices, paths)


def in_whole_set(images: Any, indices: list[int]) -> tuple[Any, list[int]]:
    """The set that a set is a part of, and the numbers that its images have there."""
    while isinstance(images, (Subset, DecodedImages)):
        if isinstance(images, Subset):
            indices = [images.indices[index] for index in indices]
            images = images.dataset
        else:
            images = images.images
    return images, indices
