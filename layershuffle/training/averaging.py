"""Averaged weights: refuses those that a run would never update, and saves them wherever a run saves."""

import math
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging

from layershuffle.errors import UserError
from layershuffle.plurals import counted
from layershuffle.private_apis import average_without_waiting


def check_averages(callbacks: Iterable[Any], steps: float, epochs: int | None) -> None:
    """Raise a UserError if the average of the weights begins after the end: it would be the untrained weights.

    Args:
        callbacks: those of the trainer.
        steps: how many steps the run has; infinite without an end.
        epochs: how many epochs it has at most; None or -1 without a limit.
    """
    if math.isinf(steps):
        return
    # An epoch has a step at least, so there are no more epochs than steps.
    last_epoch = epochs
    if epochs in (None, -1):
        last_epoch = int(steps)

    # A callback may begin with a step or with an epoch. Asking for each of them is the only public way to know.
    for callback in callbacks:
        if not isinstance(callback, WeightAveraging):
            continue
        averages_a_step = any(callback.should_update(step_idx=step) for step in range(int(steps)))
        averages_an_epoch = any(callback.should_update(epoch_idx=epoch) for epoch in range(last_epoch or 0))
        if steps and not averages_a_step and not averages_an_epoch:
            raise UserError(
                f"{type(callback).__name__} averages no weights in the {counted(steps, 'step')} of this run, so its "
                "checkpoints would hold untrained ones: lower update_starting_at_step and update_every_n_steps"
            )


def refuse_averages(callbacks: Iterable[Any]) -> None:
    """Raise a UserError if the weights are to be averaged, which those that are spread over processes can't be."""
    if any(isinstance(callback, WeightAveraging) for callback in callbacks):
        raise UserError("weights that are sharded can't be averaged: leave out EMAWeightAveraging, or use ddp")


def speed_up_averages(callbacks: Iterable[Any]) -> None:
    """Keep the averages of a run that begins from waiting for the device in every step."""
    for callback in callbacks:
        if isinstance(callback, WeightAveraging):
            average_without_waiting(callback)


def put_averages(checkpoint: dict[str, Any], trainer: pl.Trainer) -> None:
    """Put the averages into a checkpoint of weights alone, which Lightning saves without asking its callbacks."""
    if "optimizer_states" in checkpoint:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_save_checkpoint(trainer, trainer.lightning_module, checkpoint)
            # What only a training that goes on needs.
            checkpoint.pop("current_model_state", None)
            checkpoint.pop("averaging_state", None)
