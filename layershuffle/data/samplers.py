"""Which images a process reads, and in which sequence."""

from collections.abc import Iterator, Sized
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from layershuffle.data.augmentation import Augmented
from layershuffle.errors import UserError
from layershuffle.plurals import counted


class TrainingSampler(DistributedSampler):
    """Shuffles by (seed, epoch) alone, splits over the processes, and continues a run that was stopped in mid-epoch.

    Lightning counts the epochs and batches that a run has done and restores both counts from a checkpoint. So this
    sampler keeps no state, and batches that worker processes have read ahead don't count.

    ``Augmented`` images are asked for by (epoch, index), or where they are balanced by (epoch, index, time): an image
    that comes again in the same epoch is changed in another way.

    Args:
        images: the training set.
        batch_size: images per step and process.
        seed: the seed of the run.
        trainer: counts the epochs, batches and processes.
        labels: int64 [images]. If they are given, the images of an epoch are sampled with replacement, every class with
            the same probability and every image of a class with the same probability.
    """

    def __init__(
        self,
        images: Sized,
        batch_size: int,
        seed: int,
        trainer: pl.Trainer | None = None,
        labels: Tensor | None = None,
    ) -> None:
        ranks = 1
        rank = 0
        if trainer is not None:
            ranks = trainer.world_size
            rank = trainer.global_rank
        super().__init__(images, ranks, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.batch_size = batch_size
        self.trainer = trainer
        self.with_epoch = isinstance(images, Augmented)
        self.weights: Tensor | None = None
        if labels is not None:
            # The images of a class share a weight of 1, however many they are.
            images_of_class = labels.bincount()
            self.weights = 1 / images_of_class[labels].double()

    def __iter__(self) -> Iterator[Any]:
        batches_done = self._resume()
        yield from self.keys()[batches_done * self.batch_size :]

    def keys(self) -> list[Any]:
        """What this process asks for in the epoch that ``set_epoch`` has set, from its first batch on."""
        # All processes compute the same sequence, and each takes every n-th image of it: they exchange nothing.
        for_all = self._images_of_epoch()
        mine = slice(self.rank, self.total_size, self.num_replicas)

        indices = for_all[mine].tolist()
        if not self.with_epoch:
            return indices
        if self.weights is None:
            return [(self.epoch, index) for index in indices]
        # An image may come in several processes, so that its times are counted in the sequence for all.
        times_before = times(for_all)[mine].tolist()
        return [(self.epoch, index, time) for index, time in zip(indices, times_before)]

    def _resume(self) -> int:
        """Set the epoch that the trainer is in, and return how many of its batches are done."""
        # When a run is resumed, workers ask for images before Lightning calls set_epoch.
        if self.trainer is None or not self.trainer.training:
            return 0
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        self.set_epoch(epochs.processed)
        if epochs.ready <= epochs.processed:  # no epoch has begun
            return 0
        batches: Any = loop.epoch_loop.batch_progress.current
        return batches.processed

    def _images_of_epoch(self) -> Tensor:
        """The images of the epoch for all processes together, int64 [images]."""
        rng = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.weights is None:
            return torch.randperm(len(self.dataset), generator=rng)  # type: ignore[arg-type]
        return torch.multinomial(self.weights, len(self.weights), replacement=True, generator=rng)


def times(indices: Tensor) -> Tensor:
    """How often each of these numbers, int64 [numbers], has come before in the sequence."""
    # Sorted, equal numbers are neighbours, and an entry's distance from the first of them is how many came before.
    in_groups, places = indices.sort(stable=True)
    first_of_group = torch.searchsorted(in_groups, in_groups)
    before = torch.arange(len(indices)) - first_of_group
    return torch.empty_like(places).scatter_(0, places, before)


def evaluation_batches(images: int, batch_size: int, ranks: int, rank: int) -> list[list[int]]:
    """The parts of process ``rank`` of ``ranks`` in batches of every image once and in order.

    All processes have the same number of batches, and a batch has the same images for any number of processes. A
    process's part of the last batch can be empty. ``batch_size`` counts the images of all processes together.
    """
    smallest = min(images, batch_size)
    if smallest < ranks:
        raise UserError(f"{counted(ranks, 'process')} can't share batches of {counted(smallest, 'image')}: use fewer")

    # A part begins where the one of the process before it ends, also where a batch can't be divided evenly.
    parts = []
    for start in range(0, images, batch_size):
        batch = range(start, min(start + batch_size, images))
        first = len(batch) * rank // ranks
        end = len(batch) * (rank + 1) // ranks
        parts.append(list(batch[first:end]))
    return parts
