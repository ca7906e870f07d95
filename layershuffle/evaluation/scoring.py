"""Scores all the orders that protocols ask for in one pass over the data."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast, get_args

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import Metric

from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import Pick, Trial
from layershuffle.results.record import Score

# --- Running ------------------------------------------------------------------------------------------------


def outputs(model: OrderedViT, images: Tensor, orders: Iterable[Order]) -> Iterator[tuple[Order, Output]]:
    """Run a batch in each of ``orders``; a beginning that orders share is computed once.

    The orders are walked depth first as a trie over their steps, so that besides ``images`` only one activation
    per depth is held. Each output equals ``model(images, order)``. They come in the trie's sequence.
    """
    yield from _descend(model, model.embed(images), [], sorted(set(orders), key=lambda order: order.steps))


def _descend(
    model: OrderedViT, state: State, position_logits: list[Tensor | None], orders: list[Order]
) -> Iterator[tuple[Order, Output]]:
    """Run the rest of ``orders``, sorted, whose first len(position_logits) steps are the same and led to ``state``."""
    while orders:
        position = len(position_logits)
        if len(orders[0]) == position:
            yield orders[0], model.classify(state, position_logits)
            orders = orders[1:]
            continue
        step = orders[0][position]
        same = sum(order[position] == step for order in orders)
        after, step_logits = model.run_step(state, step, position)
        if same == len(orders):  # No other order goes on from this state, so it needn't be kept.
            state, position_logits = after, [*position_logits, step_logits]
        else:
            yield from _descend(model, after, [*position_logits, step_logits], orders[:same])
            orders = orders[same:]


class OrderMetrics(Metric):
    """Top-1 and top-5 accuracy, cross-entropy and position accuracy of ``count`` orders, summed on the device."""

    full_state_update = False
    images: Tensor
    top1: Tensor
    top5: Tensor
    loss: Tensor
    positions: Tensor
    positions_right: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.add_state("loss", torch.zeros(count), dist_reduce_fx="sum")
        for name in ("images", "top1", "top5", "positions", "positions_right"):
            self.add_state(name, torch.zeros(count, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, first: int, outputs: Sequence[Output], labels: Tensor) -> None:
        """Add a batch's outputs to the orders from number ``first`` on, one output each; labels: int64 [batch]."""
        rows = slice(first, first + len(outputs))
        logits = torch.stack([output.logits for output in outputs]).float()
        best = logits.topk(min(5, logits.shape[-1])).indices == labels.unsqueeze(1)
        losses = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(outputs)), reduction="none")
        self.images[rows] += len(labels)
        self.top1[rows] += (logits.argmax(dim=-1) == labels).sum(
            dim=1
        )  # not best[..., 0]: topk may sort equal logits otherwise
        self.top5[rows] += best.sum(dim=(1, 2))
        self.loss[rows] += losses.view(len(outputs), -1).sum(dim=1)
        for row, (_, position_logits) in enumerate(outputs, first):
            if position_logits is not None:
                predicted = position_logits.argmax(dim=-1)
                held = torch.arange(len(predicted), device=predicted.device)
                self.positions[row] += predicted.numel()
                self.positions_right[row] += (predicted == held[:, None]).sum()

    def compute(self) -> list[dict[str, Any]]:
        """The scores of each order as plain numbers."""
        counts = (self.images, self.top1, self.top5, self.loss, self.positions, self.positions_right)
        return [
            {
                "images": images,
                "top1": top1 / images,
                "top5": top5 / images,
                "loss": float(f"{loss / images:.7g}")
                if math.isfinite(loss)
                else None,  # the precision of a float32 sum
                "position_accuracy": right / positions if positions else None,
            }
            for images, top1, top5, loss, positions, right in zip(*(count.tolist() for count in counts))
        ]


COUNTED_AT_ONCE = 1 << 22
"""Outputs are counted together once they hold this many numbers. For small models, counting each would be slow."""


@torch.inference_mode()
def evaluate(
    model: OrderedViT,
    preprocess: nn.Module,
    batches: DataLoader,
    to_score: Sequence[Trial],
    fabric: Fabric,
    seed: int = 0,
    on_output: Callable[[], None] = lambda: None,
) -> list[Score]:
    """Score every trial on all ``batches``, reading and moving each batch once.

    Args:
        model: any model; it is moved to the device of ``fabric`` and put in evaluation mode.
        preprocess: makes the model's input from the batch's uint8 images, on the device.
        batches: of (uint8 images [batch, channels, height, width], int64 labels [batch]). Each of several processes has
            a part of the images, and all return the scores of all images.
        to_score: see ``trials``.
        fabric: the device and the precision.
        seed: decides the orders that are new in every batch.
        on_output: called after each order of each batch, for a progress bar.

    Raises:
        UserError: before the first batch, if the model can't run one of the orders.
    """
    fixed = sorted({trial.order for trial in to_score if isinstance(trial.order, Order)}, key=lambda order: order.steps)
    for order in fixed:
        model.check(order)
    model, preprocess = model.to(fabric.device).eval(), preprocess.to(fabric.device)
    others = [kind for kind in (None, *get_args(Pick)) if any(trial.order == kind for trial in to_score)]
    rows: dict[Order | Pick | None, int] = {order: row for row, order in enumerate([*fixed, *others])}
    metrics = OrderMetrics(len(rows)).to(fabric.device)
    picks = [pick for pick in others if pick]
    choices: tuple[Order, ...] = model.choice.orders if picks and model.choice else ()
    chosen = torch.zeros(len(choices), device=fabric.device)
    for index, (images, labels) in enumerate(batches):
        if not len(labels):
            continue  # The last batch can have fewer images than there are processes.
        images, labels = (part.to(fabric.device, non_blocking=True) for part in (images, labels))
        images = preprocess(images)
        fresh = model.order.shuffled(seeded(seed, "per batch", index)) if None in rows else None
        waiting: list[Output] = []
        counted = 0
        by_choice: dict[Order, Tensor] = {}
        with fabric.autocast():
            for order, output in outputs(model, images, [*fixed, *choices, *([fresh] if fresh else [])]):
                if order in rows:  # outputs come in the sequence of the rows
                    waiting.append(output)
                    if order == fixed[-1] or len(waiting) * _size(output) >= COUNTED_AT_ONCE:
                        metrics.update(counted, waiting, labels)
                        counted, waiting = counted + len(waiting), []
                if order == fresh:
                    metrics.update(rows[None], [output], labels)
                if order in choices:
                    by_choice[order] = output.logits.float()
                on_output()
            if choices and model.choice:
                logits = torch.stack([by_choice[order] for order in choices])
                picked = _picked(model.choice(model.embed(images).tokens), logits, labels)
                chosen += picked["chosen"].bincount(minlength=len(choices))
                for pick in picks:
                    each = torch.arange(len(labels), device=labels.device)
                    metrics.update(rows[pick], [Output(logits[picked[pick], each])], labels)
    chosen = cast(Tensor, fabric.all_reduce(chosen, reduce_op="sum"))
    scores = metrics.compute()
    shares = dict(zip(choices, (chosen / chosen.sum()).tolist()))
    return [
        Score(
            trial.protocol,
            trial.variant,
            str(trial.order) if isinstance(trial.order, Order) else None,
            **scores[rows[trial.order]],
            chosen=shares.get(trial.order) if isinstance(trial.order, Order) else None,
        )
        for trial in to_score
    ]


def _size(output: Output) -> int:
    return sum(logits.numel() for logits in output if logits is not None)


def _picked(choice_logits: Tensor, logits: Tensor, labels: Tensor) -> dict[Pick, Tensor]:
    """For each Pick, the index of the choice for each image, int64 [batch]; logits: [choices, batch, classes]."""
    losses = torch.stack([F.cross_entropy(of_one, labels, reduction="none") for of_one in logits])
    wrong = logits.argmax(dim=2) != labels
    # An order in which the image is classified rightly comes first even if its loss is larger.
    return {"chosen": choice_logits.argmax(dim=1), "oracle": (losses + 1e6 * wrong).argmin(dim=0)}
