"""Which images a process reads, and in which sequence."""

from collections.abc import Iterator, Sized
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler

from layershuffle.data.augmentation import Augmented
from layershuffle.errors import UserError


class TrainingSampler(DistributedSampler):
    """Shuffles by (seed, epoch) alone, splits over the processes, and continues a run that was stopped in mid-epoch.

    Lightning counts the epochs and batches that a run has done and restores both counts from a checkpoint. So this
    sampler keeps no state, and batches that worker processes have read ahead don't count.

    ``Augmented`` images are asked for by (epoch, index), or where they are balanced by (epoch, index, time): an image
    that is drawn again in the same epoch is changed in another way.

    Args:
        images: the training set.
        batch_size: images per step and process.
        seed: the seed of the run.
        trainer: counts the epochs, batches and processes.
        labels: int64 [images]. If they are given, the images of an epoch are drawn with replacement, every class with
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
        ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        super().__init__(images, ranks, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.batch_size, self.trainer = batch_size, trainer
        self.with_epoch = isinstance(images, Augmented)
        self.weights = None if labels is None else 1 / labels.bincount()[labels].double()

    def __iter__(self) -> Iterator[Any]:
        # When a run is resumed, workers ask for images before Lightning calls set_epoch.
        done = 0
        if self.trainer is not None and self.trainer.training:
            loop = self.trainer.fit_loop
            epochs: Any = loop.epoch_progress.current
            self.set_epoch(epochs.processed)
            if epochs.ready > epochs.processed:  # an epoch has begun
                batches: Any = loop.epoch_loop.batch_progress.current
                done = batches.processed
        drawn, mine = self._draw(), slice(self.rank, self.total_size, self.num_replicas)
        columns = [drawn[mine].tolist()]
        if self.with_epoch:
            columns.insert(0, [self.epoch] * len(columns[0]))
            if self.weights is not None:
                columns.append(times(drawn)[mine].tolist())
        yield from list(zip(*columns) if self.with_epoch else columns[0])[done * self.batch_size :]

    def _draw(self) -> Tensor:
        """The images of the epoch for all processes together."""
        rng = torch.Generator().manual_seed(self.seed + self.epoch)
        if self.weights is None:
            return torch.randperm(len(self.dataset), generator=rng)  # type: ignore[arg-type]
        return torch.multinomial(self.weights, len(self.weights), replacement=True, generator=rng)


def times(drawn: Tensor) -> Tensor:
    """How often each of these numbers, int64 [numbers], has come before in the sequence."""
    in_groups, places = drawn.sort(stable=True)
    first = torch.searchsorted(in_groups, in_groups)
    return torch.empty_like(places).scatter_(0, places, torch.arange(len(drawn)) - first)


def evaluation_batches(images: int, batch_size: int, ranks: int, rank: int) -> list[list[int]]:
    """The parts of process ``rank`` of ``ranks`` in batches of every image once and in order.

    All processes have the same number of batches, and a batch has the same images for any number of processes. A
    process's part of the last batch can be empty. ``batch_size`` counts the images of all processes together.
    """
    if min(images, batch_size) < ranks:
        raise UserError(f"{ranks} processes can't share batches of {min(images, batch_size)} images: use fewer")
    batches = [range(start, min(start + batch_size, images)) for start in range(0, images, batch_size)]
    return [list(batch[len(batch) * rank // ranks : len(batch) * (rank + 1) // ranks]) for batch in batches]
