"""Watches a training step that is run again, and tells what in it was not finite first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from layershuffle.data.rereading import TrainingBatch, read_again
from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order


@dataclass(frozen=True)
class Finding:
    """What was not finite first.

    Attributes:
        step: the optimizer step, from 0.
        part: what gave the first values that were not finite: the embedding, a layer, the loss of finite layers, or the
            update of the weights after a finite loss.
        order: the order in which that happened; None for the loss and the update.
        position: the position in that order at which the layer ran; None if it was no layer.
        largest: the largest absolute value after the embedding and after each layer of that order until then.
        rows: for which images of the batch the values were not finite; all of them for the loss and the update.
        weights: the parameters that were not finite, before the step, or for an update after it.
        gradients: the parameters whose gradients were not finite, for an update.
        batch: the images, if they could be read again.
    """

    step: int
    part: Literal["embedding", "layer", "loss", "update"]
    order: Order | None
    position: int | None
    largest: list[float]
    rows: list[int]
    weights: list[str]
    gradients: list[str]
    batch: TrainingBatch | None


class Found(Exception):  # noqa: N818 (it is no error)
    """Ends a training that was run again, once its last step was watched; without a finding if all was finite."""

    def __init__(self, finding: Finding | None) -> None:
        super().__init__()
        self.finding = finding


class StepWatch(pl.Callback):
    """Watches a step and the one before it, whose update may be the cause, and then ends the training with ``Found``.

    It waits for the device after each layer of these two steps, and in no other step.

    Args:
        step: the step whose loss or weights were not finite.
        rank: the process where that was so.
    """

    def __init__(self, step: int, rank: int) -> None:
        self.step = step
        self.rank = rank
        self._layers = LayerWatch(0)
        self._weights: list[str] = []
        self._gradients: list[str] = []
        self._watched_step: int | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin to watch the layers."""
        self._watched_step = None
        if trainer.global_step not in (self.step - 1, self.step):
            return
        self._watched_step = trainer.global_step
        self._weights = _not_finite(pl_module, "data")
        self._gradients = []
        self._layers = LayerWatch(len(batch[1]))
        self._layers.begin(pl_module.model)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Any) -> None:
        """Note the gradients, which the optimizer may clear."""
        if self._watched_step is not None:
            self._gradients = _not_finite(pl_module, "grad")

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Raise ``Found`` if anything was not finite, or if this was the last batch to watch."""
        if self._watched_step is None:
            return
        self._layers.end(pl_module.model)
        finding = self._finding(trainer, pl_module, outputs, batch_idx)
        # All processes end after the same batch, with what the one in question has found.
        finding = trainer.strategy.broadcast(finding, src=self.rank)
        is_last = trainer.global_step > self.step
        if finding or is_last:
            raise Found(finding)

    def _finding(self, trainer: pl.Trainer, module: Any, outputs: Any, batch_idx: int) -> Finding | None:
        """What was not finite first in the batch that is done."""
        layers = self._layers
        weights = self._weights
        part: Literal["embedding", "layer", "loss", "update"]
        if layers.rows:
            part = "embedding" if layers.position is None else "layer"
        elif not outputs["loss"].isfinite():
            part = "loss"
        else:
            # Gradients that are not finite do no harm if the scaler of fp16 has skipped their update.
            part = "update"
            weights = _not_finite(module, "data")
            if not weights:
                return None
        return Finding(
            step=self._watched_step or 0,
            part=part,
            order=layers.order if layers.rows else None,
            position=layers.position,
            largest=layers.largest if layers.rows else [],
            rows=layers.rows or list(range(layers.images)),
            weights=weights,
            gradients=self._gradients if part == "update" else [],
            batch=read_again(trainer.train_dataloader, trainer.current_epoch, batch_idx, self.rank),
        )


class LayerWatch:
    """Looks at the state after the embedding and after each step of every order that a model runs.

    Args:
        images: how many images the batch has.

    Attributes:
        order: the order in which the first values came that were not finite, if any.
        position: their position in it; None if they came from the embedding.
        largest: the largest absolute value after the embedding and each step of the order that runs.
        rows: the images of the batch with these values.
    """

    def __init__(self, images: int) -> None:
        self.images = images
        self.order: Order | None = None
        self.position: int | None = None
        self.largest: list[float] = []
        self.rows: list[int] = []
        self._first_row = 0

    def begin(self, model: OrderedViT) -> None:
        """Watch a model, until ``end``."""
        run_steps = model.run_steps

        def watched(state: State, order: Order) -> Iterator[tuple[State, Tensor | None]]:
            if not self.rows:
                self.order = order
                self.largest = []
            self._look(state.tokens, None)
            for position, result in enumerate(run_steps(state, order)):
                self._look(result[0].tokens, position)
                yield result
            # The next order runs the next part of the batch. If every order runs all images, it begins anew.
            self._first_row = (self._first_row + len(state.tokens)) % max(1, self.images)

        model.run_steps = watched  # type: ignore[method-assign]

    def end(self, model: OrderedViT) -> None:
        """Give the model its own method back."""
        del model.run_steps

    def _look(self, tokens: Tensor, position: int | None) -> None:
        if self.rows:
            return
        values = tokens.detach().flatten(1)
        bad = (~values.isfinite().all(dim=1)).nonzero().flatten()
        if len(bad):
            self.position = position
            self.rows = (bad + self._first_row).tolist()
        elif values.numel():
            self.largest.append(float(values.abs().max()))


def _not_finite(module: Any, attribute: Literal["data", "grad"]) -> list[str]:
    """The names of the parameters that are not finite, or whose gradients aren't; waits for the device."""
    names = []
    for name, parameter in module.model.named_parameters():
        values = getattr(parameter, attribute)
        if isinstance(values, DTensor):
            values = values.to_local()
        if values is not None and not bool(torch.isfinite(values).all()):
            names.append(name)
    return names
