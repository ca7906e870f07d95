"""Samplers decide which images a process reads, and in which sequence."""

import math
from collections.abc import Iterator, Sized
from typing import Any

import lightning.pytorch as pl
from torch.utils.data import DistributedSampler, Sampler

from layershuffle.errors import UserError


class TrainingSampler(DistributedSampler):
    """Shuffles by (seed, epoch) alone, splits over the processes, and continues a run that was stopped in mid-epoch.

    Lightning counts the epochs and batches that a run has done and restores both counts from a checkpoint. So this
    sampler keeps no state, and batches that worker processes have read ahead don't count.

    Args:
        images: the data set.
        batch_size: images per process and step.
        seed: decides the sequences.
        trainer: whose progress counts; without one, this is the first epoch.
    """

    def __init__(self, images: Sized, batch_size: int, seed: int, trainer: pl.Trainer | None = None) -> None:
        ranks, rank = (trainer.world_size, trainer.global_rank) if trainer else (1, 0)
        super().__init__(images, ranks, rank, shuffle=True, seed=seed, drop_last=True)  # type: ignore[arg-type]
        self.batch_size, self.trainer = batch_size, trainer

    def __iter__(self) -> Iterator[int]:
        # When a run is resumed, workers ask for images before Lightning calls set_epoch.
        done = 0
        if self.trainer is not None and self.trainer.training:
            loop = self.trainer.fit_loop
            epochs: Any = loop.epoch_progress.current
            self.set_epoch(epochs.processed)
            if epochs.ready > epochs.processed:  # an epoch has begun
                batches: Any = loop.epoch_loop.batch_progress.current
                done = batches.processed
        yield from list(super().__iter__())[done * self.batch_size :]


class EvaluationBatches(Sampler[list[int]]):
    """Batches of every image once and in order, of which each process takes its part.

    So all processes have the same number of batches, and a batch has the same images for any number of processes. A
    process's part of the last batch can be empty.

    Args:
        images: the number of images.
        batch_size: images per batch of all processes together.
        ranks: the number of processes.
        rank: the number of this process.
    """

    def __init__(self, images: int, batch_size: int, ranks: int, rank: int) -> None:
        if min(images, batch_size) < ranks:
            raise UserError(f"{ranks} processes can't share batches of {min(images, batch_size)} images: use fewer")
        self.images, self.batch_size, self.ranks, self.rank = images, batch_size, ranks, rank

    def __len__(self) -> int:
        return math.ceil(self.images / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.images, self.batch_size):
            batch = range(start, min(start + self.batch_size, self.images))
            yield list(batch[len(batch) * self.rank // self.ranks : len(batch) * (self.rank + 1) // self.ranks])
