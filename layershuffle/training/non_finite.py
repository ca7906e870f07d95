"""Stops a run whose loss or weights are NaN or infinite, before it saves them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from layershuffle.errors import UserError
from layershuffle.training.checkpointing import LastCheckpoint
from layershuffle.training.step_orders import StepOrders

NO_STEP = -1
"""Stands for a step where all losses were finite, also in tensors, which can't hold None."""


class FirstNonFiniteStep:
    """The first step whose loss was NaN or infinite, kept on the device until somebody reads it."""

    def __init__(self) -> None:
        self._step: Tensor | None = None

    def note(self, loss: Tensor, step: int) -> None:
        """Check the loss of a step, a scalar. This doesn't wait for the device."""
        if self._step is None:
            # Created on the device: a copy from the host would wait for it.
            self._step = torch.full((), NO_STEP, device=loss.device)
        is_first = (self._step < 0) & ~loss.detach().isfinite()
        self._step = torch.where(is_first, step, self._step)

    def read(self) -> int:
        """The step, or NO_STEP if all losses were finite. This waits for the device."""
        return NO_STEP if self._step is None else int(self._step)


def all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the parameters, or this process's shards of them, are finite; waits for the device."""
    # Their largest absolute value is one number for all of them, so that the device is waited for only once.
    shards = []
    for parameter in parameters:
        shard = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if shard.numel():  # Some processes hold nothing of a small parameter.
            shards.append(shard.detach())
    return bool(torch.nn.utils.get_total_norm(shards, norm_type=math.inf).isfinite())


def check_before_saving(losses: FirstNonFiniteStep, module: pl.LightningModule, orders: StepOrders) -> None:
    """Raise a UserError if a loss or a weight of the module is not finite, as ``stop_after`` does."""
    step = losses.read()
    if step == NO_STEP and not all_finite(module.parameters()):
        # The last step made them so, and no loss has shown it yet.
        step = max(0, module.global_step - 1)
    stop_after(step, module, orders)


def stop_after(step: int, module: pl.LightningModule, orders: StepOrders) -> None:
    """Raise a UserError if ``step`` is not NO_STEP in this process or in another one. All processes must call this."""
    # A process that stops alone would leave the others waiting for it.
    steps = [step]
    if module.trainer.world_size > 1:
        gathered = module.all_gather(torch.tensor(step, device=module.device))
        steps = gathered.tolist()  # type: ignore[union-attr]
    bad_steps = [(step, rank) for rank, step in enumerate(steps) if step != NO_STEP]
    if not bad_steps:
        return
    # What came first is the cause; the other processes have caught it with the gradients.
    first_step, rank = min(bad_steps)
    raise UserError(_explanation(first_step, rank, orders, good_checkpoint(module.trainer)))


def good_checkpoint(trainer: pl.Trainer) -> str | None:
    """The last checkpoint that the run has saved, or else the one that it was resumed from."""
    last_checkpoints = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
    paths: Sequence = [*(callback.best_model_path for callback in last_checkpoints), trainer.ckpt_path]
    for path in paths:
        if path and Path(path).exists():
            return str(path)
    return None


def _explanation(step: int, rank: int, orders: StepOrders, checkpoint: str | None) -> str:
    texts = "|".join(str(order) for order in orders.of_process(step, rank))
    last_good = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    return (
        f"the loss or the weights were not finite in step {step} (process {rank}), whose order was {texts}; "
        f"{last_good}: lower model.optimizer.lr, or clip with --trainer.gradient_clip_val 1"
    )
