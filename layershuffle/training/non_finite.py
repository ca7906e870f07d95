"""Stops a run whose loss or weights are NaN or infinite, before it saves them."""

import math
from collections.abc import Iterable
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from layershuffle.errors import UserError
from layershuffle.training import step_file
from layershuffle.training.checkpointing import LastCheckpoint
from layershuffle.training.step_file import BatchPlace
from layershuffle.training.step_orders import StepOrders

NOTHING = -1
"""Stands for no batch in tensors, which can't hold None."""


class FirstNonFiniteLoss:
    """The first batch whose loss was NaN or infinite, kept on the device until somebody reads it."""

    def __init__(self) -> None:
        # The batches since the last one that was read, and the index of the first bad one of them: a scalar on the
        # device, ``NOTHING`` as long as all were good.
        self._places: list[BatchPlace] = []
        self._index: Tensor | None = None

    def note(self, loss: Tensor, place: BatchPlace) -> None:
        """Check the loss of a batch, a scalar. This doesn't wait for the device."""
        if self._index is None:
            # Created on the device: a copy from the host would wait for it.
            self._index = torch.full((), NOTHING, device=loss.device)
        # An ``if`` would wait for the device, so the device itself chooses between the old index and the new one.
        is_first = (self._index == NOTHING) & ~loss.detach().isfinite()
        self._index = torch.where(is_first, len(self._places), self._index)
        self._places.append(place)

    def read(self) -> BatchPlace | None:
        """The batch, or None if all losses were finite. This waits for the device."""
        if self._index is None:
            return None
        index = int(self._index)
        if index != NOTHING:
            return self._places[index]
        # No older batch can turn out to be the first one any more.
        self._places = self._places[-1:]
        return None

    @property
    def newest(self) -> BatchPlace | None:
        """The batch that was noted last, if any."""
        return self._places[-1] if self._places else None


def all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the parameters, or this process's shards of them, are finite; waits for the device."""
    # Their largest absolute value is one number for all of them, so that the device is waited for only once.
    shards = []
    for parameter in parameters:
        shard = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        if shard.numel():  # Some processes hold nothing of a small parameter.
            shards.append(shard.detach())
    return bool(torch.nn.utils.get_total_norm(shards, norm_type=math.inf).isfinite())


def check_before_saving(losses: FirstNonFiniteLoss, module: pl.LightningModule, orders: StepOrders) -> None:
    """Raise a UserError if a loss or a weight of the module is not finite, as ``stop_after`` does."""
    place = losses.read()
    if place is None and not all_finite(module.parameters()):
        # The last step made them so, and no loss has shown it yet.
        step = max(0, module.global_step - 1)
        place = losses.newest or BatchPlace(step, module.current_epoch, 0)
    stop_after(place, module, orders)


def stop_after(place: BatchPlace | None, module: pl.LightningModule, orders: StepOrders) -> None:
    """Raise a UserError if ``place`` is not None in this process or in another one. All processes must call this.

    The error names a file with the batch, if there is anything to replay it with.
    """
    # A process that stops alone would leave the others waiting for it, so each tells all others what it has found.
    places = [place or BatchPlace(NOTHING, NOTHING, NOTHING)]
    if module.trainer.world_size > 1:
        gathered = module.all_gather(torch.tensor(places[0], device=module.device))
        places = [BatchPlace(*numbers) for numbers in gathered.tolist()]  # type: ignore[union-attr]
    bad_places = [(place, rank) for rank, place in enumerate(places) if place.step != NOTHING]
    if not bad_places:
        return
    # What came first is the cause; the other processes have caught it with the gradients. Places are compared by step,
    # epoch and batch.
    first, rank = min(bad_places)
    texts = [str(order) for order in orders.of_process(first.step, rank)]
    checkpoint = good_checkpoint(module.trainer)
    saved = step_file.save(module.trainer, first, rank, texts, checkpoint)
    raise UserError(_explanation(first.step, rank, texts, checkpoint, saved))


def good_checkpoint(trainer: pl.Trainer) -> str | None:
    """The last checkpoint that the run has saved, or else the one that it was resumed from."""
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
    # Whatever a callback keeps, Lightning calls it the best. Here it is the newest.
    saved_paths = [callback.best_model_path for callback in callbacks]
    # The path is empty before the first checkpoint, and somebody may have removed the file.
    for path in (*saved_paths, trainer.ckpt_path):
        if path and Path(path).exists():
            return str(path)
    return None


def _explanation(step: int, rank: int, orders: list[str], checkpoint: str | None, saved: Path | None) -> str:
    """What the error says.

    Args:
        step: the first step whose loss or weights were not finite.
        rank: the process where that was so.
        orders: the orders of the parts of its batch, as texts.
        checkpoint: the last good checkpoint.
        saved: the file with the batch.
    """
    last_good = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    where = f"; layershuffle replay {saved} shows where" if saved else ""
    return (
        f"the loss or the weights were not finite in step {step} (process {rank}), whose order was {'|'.join(orders)}; "
        f"{last_good}: lower model.optimizer.lr, or clip with --trainer.gradient_clip_val 1{where}"
    )
