"""Scores all the orders that protocols ask for in one pass over the data."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, cast, get_args

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import Metric

from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import Pick, SampleOrder, Trial
from layershuffle.results import Score


def outputs(model: OrderedViT, images: Tensor, orders: Iterable[Order]) -> Iterator[tuple[Order, Output]]:
    """Run a batch in each of ``orders``; a beginning that orders share is computed once.

    The sorted orders are a trie over their steps, walked depth first. Besides ``images`` only one activation per depth
    is held. Each output equals ``model(images, order)``. They come sorted by the steps of the orders.
    """
    ordered = sorted(set(orders), key=lambda order: order.steps)
    states, position_logits = [model.embed(images)], []  # states[n] is what n steps lead to
    for order, following in zip(ordered, [*ordered[1:], Order()]):
        same = (one == other for one, other in zip_longest(order, following))
        shared = next((index for index, equal in enumerate(same) if not equal), 0)
        state = states[-1]
        for position in range(len(states) - 1, len(order)):
            state, logits = model.run_step(state, order[position], position)
            position_logits.append(logits)
            if position < shared:  # otherwise no other order goes on from this state
                states.append(state)
        yield order, model.classify(state, position_logits)
        del states[shared + 1 :], position_logits[shared:]


def best_class(logits: Tensor) -> Tensor:
    """The index of the largest logit, int64 [...], from [..., classes]; -1, which is no class, where a logit is NaN."""
    best = logits.max(dim=-1)  # torch takes NaN for the largest number
    return best.indices.where(~best.values.isnan(), -1)


BINS = 15
"""Bins of equal width, by the probability of the predicted class, whose calibration error is averaged."""
PARTS = 1_000_000
"""Calibration is summed in these parts of an image, because sums of integers don't depend on the order of adding."""


class OrderMetrics(Metric):
    """Accuracy, cross-entropy, calibration and position accuracy of ``count`` orders, summed on the device.

    The expected calibration error (arXiv 1706.04599, section 2) is the difference between accuracy and the mean
    probability of the predicted class in each bin, averaged over the images. torchmetrics has it too, but keeps the
    probability of every image, which is too much for thousands of orders.
    """

    full_state_update = False
    loss: Tensor
    counts: Tensor
    gaps: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.add_state("loss", torch.zeros(count), dist_reduce_fx="sum")
        # The number of images, top-1 and top-5 hits, predicted positions, those predicted rightly, images with NaN.
        self.add_state("counts", torch.zeros(6, count, dtype=torch.long), dist_reduce_fx="sum")
        # By bin, the sum of 1 for each image that is classified rightly, less the probability of its predicted class.
        self.add_state("gaps", torch.zeros(count, BINS, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, first: int, outputs: Sequence[Output], labels: Tensor) -> None:
        """Add a batch's outputs to the orders from number ``first`` on, one output each; labels: int64 [batch]."""
        rows = slice(first, first + len(outputs))
        images, top1, top5, positions, positions_right, nan = self.counts
        logits = torch.stack([output.logits for output in outputs]).float()
        best, five = best_class(logits), logits.topk(min(5, logits.shape[-1])).indices
        log_probabilities = logits.log_softmax(dim=-1)
        losses = F.nll_loss(log_probabilities.flatten(0, 1), labels.repeat(len(outputs)), reduction="none")
        right, confidence = best == labels, log_probabilities.amax(dim=-1).exp().nan_to_num()
        bins = ((BINS * confidence).ceil().long() - 1).clamp(0, BINS - 1)
        self.gaps[rows].scatter_add_(1, bins, (PARTS * (right.float() - confidence)).round().long())
        images[rows] += len(labels)
        # Not five[..., 0], because topk may return equal logits in another sequence than argmax.
        top1[rows] += right.sum(dim=1)
        top5[rows] += ((five == labels.unsqueeze(1)).any(dim=-1) & (best >= 0)).sum(dim=1)
        nan[rows] += (best < 0).sum(dim=1)
        self.loss[rows] += losses.view(len(outputs), -1).sum(dim=1)
        for row, (_, position_logits) in enumerate(outputs, first):
            if position_logits is not None:
                predicted = best_class(position_logits)
                held = torch.arange(len(predicted), device=predicted.device)
                positions[row] += predicted.numel()
                positions_right[row] += (predicted == held[:, None]).sum()

    def compute(self) -> list[dict[str, Any]]:
        """The scores of each order as plain numbers."""
        return [
            {
                "images": images,
                "top1": top1 / images,
                "top5": top5 / images,
                # A float32 sum has no more than 7 digits.
                "loss": float(f"{loss / images:.7g}") if math.isfinite(loss) else None,
                "position_accuracy": right / positions if positions else None,
                "nan": nan,
                "ece": round(gap / PARTS / images, 6),
            }
            for loss, gap, images, top1, top5, positions, right, nan in zip(
                self.loss.tolist(), self.gaps.abs().sum(dim=1).tolist(), *self.counts.tolist()
            )
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
    on_output: Callable[[Order, Output, Tensor], None] = lambda *_: None,
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
        on_output: called after each order of each batch, with the order, its output and the batch's labels. The orders
            come sorted by their steps, so that one comes after those that it begins with.

    Raises:
        UserError: before the first batch, if the model can't run one of the orders.
    """
    asked = dict.fromkeys(trial.order for trial in to_score)
    fixed = sorted((order for order in asked if isinstance(order, Order)), key=lambda order: order.steps)
    for order in fixed:
        model.check(order)
    model, preprocess = model.to(fabric.device).eval(), preprocess.to(fabric.device)
    picks = [pick for pick in get_args(Pick) if pick in asked]
    drawn = [draw for draw in asked if draw is None or callable(draw)]
    kinds = [*fixed, *drawn, *picks]
    rows: dict[Order | Pick | SampleOrder | None, int] = {kind: row for row, kind in enumerate(kinds)}
    metrics = OrderMetrics(len(rows)).to(fabric.device)
    choices: tuple[Order, ...] = model.choice.orders if picks and model.choice else ()
    chosen = torch.zeros(len(choices), device=fabric.device)
    for index, (images, labels) in enumerate(batches):
        if not len(labels):
            continue  # The last batch can have fewer images than there are processes.
        images, labels = (part.to(fabric.device, non_blocking=True) for part in (images, labels))
        images = preprocess(images)
        fresh = {draw: (draw or model.order.shuffled)(seeded(seed, "per batch", index)) for draw in drawn}
        waiting: list[Output] = []
        counted = 0
        by_choice: dict[Order, Tensor] = {}
        with fabric.autocast():
            for order, output in outputs(model, images, [*fixed, *choices, *fresh.values()]):
                if order in rows:  # outputs come in the sequence of the rows
                    waiting.append(output)
                    size = sum(logits.numel() for logits in output if logits is not None)
                    if order == fixed[-1] or len(waiting) * size >= COUNTED_AT_ONCE:
                        metrics.update(counted, waiting, labels)
                        counted, waiting = counted + len(waiting), []
                for draw in (draw for draw, its_order in fresh.items() if its_order == order):
                    metrics.update(rows[draw], [output], labels)
                if order in choices:
                    by_choice[order] = output.logits.float()
                on_output(order, output, labels)
            if choices and model.choice:
                logits = torch.stack([by_choice[order] for order in choices])
                picked = _picked(model.choice(model.embed(images).tokens), logits, labels)
                chosen += picked["chosen"].bincount(minlength=len(choices))
                each = torch.arange(len(labels), device=labels.device)
                for pick in picks:
                    metrics.update(rows[pick], [Output(logits[picked[pick], each])], labels)
    chosen = cast(Tensor, fabric.all_reduce(chosen, reduce_op="sum"))
    shares: dict[Any, float] = dict(zip(choices, (chosen / chosen.sum()).tolist()))
    scores = metrics.compute()
    return [
        Score(
            trial.protocol,
            trial.variant,
            str(trial.order) if isinstance(trial.order, Order) else None,
            **scores[rows[trial.order]],
            chosen=shares.get(trial.order),
        )
        for trial in to_score
    ]


def _picked(choice_logits: Tensor, logits: Tensor, labels: Tensor) -> dict[Pick, Tensor]:
    """For each Pick, the index of the choice for each image, int64 [batch]; logits: [choices, batch, classes]."""
    losses = torch.stack([F.cross_entropy(of_one, labels, reduction="none") for of_one in logits])
    losses = losses.nan_to_num(nan=torch.inf)  # argmin takes NaN for the smallest number
    wrong = best_class(logits) != labels
    # An order in which the image is classified rightly comes first even if its loss is larger.
    return {"chosen": choice_logits.argmax(dim=1), "oracle": (losses + 1e6 * wrong).argmin(dim=0)}
