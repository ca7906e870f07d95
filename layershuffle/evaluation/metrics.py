"""Accuracy, cross-entropy and calibration of many orders at once, summed on the device."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from layershuffle.models.model import Output

BINS = 15
"""Bins of equal width, by the probability of the predicted class, whose calibration error is averaged."""
GAP_UNITS = 1_000_000
"""Calibration gaps are summed in millionths of an image: unlike floats, integers have the same sum in any sequence."""
BUFFER_SIZE = 1 << 22
"""Outputs are counted together once they hold this many numbers. Counting each by itself is slow for small models."""


def best_class(logits: Tensor) -> Tensor:
    """The index of the largest logit, int64 [...], from [..., classes]; -1, which is no class, where a logit is NaN."""
    best = logits.max(dim=-1)  # torch takes NaN for the largest number
    return best.indices.where(~best.values.isnan(), -1)


class OrderScore(NamedTuple):
    """How the images did in one order; the fields are those of ``results.Score``."""

    images: int
    top1: float | None
    top5: float | None
    loss: float | None
    position_accuracy: float | None
    nan: int
    ece: float | None
    map: float | None = None
    f1: float | None = None


class OrderTotals(Metric):
    """What is summed up of each of ``count`` orders, whatever the labels of the images are.

    Attributes:
        images: how many images each order classified, int64 [count].
        nan: how many had logits that are not numbers.
        positions: how many positions the layers predicted.
        positions_right: how many of these rightly.
        loss: the sum of the cross-entropies, float32 [count].
    """

    full_state_update = False
    images: Tensor
    nan: Tensor
    positions: Tensor
    positions_right: Tensor
    loss: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        for name in ("images", "nan", "positions", "positions_right"):
            self.add_state(name, torch.zeros(count, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("loss", torch.zeros(count), dist_reduce_fx="sum")

    def add_positions(self, first: int, outputs: Sequence[Output]) -> None:
        """Count the positions that the layers predicted, of the orders from number ``first`` on."""
        # Orders may have different numbers of steps, so their position logits can't be stacked into one tensor.
        for row, output in enumerate(outputs, first):
            if output.position_logits is not None:
                self._add_positions(row, output.position_logits, output.position_targets())

    def _add_positions(self, row: int, position_logits: Tensor, positions: Tensor) -> None:
        """Count the positions that the layers of one order predicted.

        position_logits: [steps, batch, positions]. positions: those that the steps had, int64 [steps].
        """
        predicted = best_class(position_logits)
        actual = positions.unsqueeze(1)  # [steps, 1]
        self.positions[row] += predicted.numel()
        self.positions_right[row] += (predicted == actual).sum()


def mean_loss(total: float, images: int) -> float | None:
    """The mean of losses whose sum this is, or None if it isn't finite."""
    # A float32 sum has no more than 7 digits.
    return float(f"{total / images:.7g}") if math.isfinite(total) else None


class OrderMetrics(OrderTotals):
    """Accuracy, cross-entropy, calibration and position accuracy of ``count`` orders, summed on the device.

    The expected calibration error (arXiv 1706.04599, section 2) is the difference between accuracy and the mean
    probability of the predicted class in each bin, averaged over the images. torchmetrics has it too, but keeps the
    probability of every image, which is too much for thousands of orders.

    Attributes:
        top1: how many of the images were classified rightly, int64 [count].
        top5: of how many the label was among the five likeliest classes.
        gaps: by bin, the sum of 1 for each image that was classified rightly, less the probability of its predicted
            class, in GAP_UNITS, int64 [count, BINS].
    """

    top1: Tensor
    top5: Tensor
    gaps: Tensor

    def __init__(self, count: int) -> None:
        super().__init__(count)
        for name in ("top1", "top5"):
            self.add_state(name, torch.zeros(count, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("gaps", torch.zeros(count, BINS, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, first: int, outputs: Sequence[Output], labels: Tensor) -> None:
        """Add a batch's outputs to the orders from number ``first`` on, one output each; labels: int64 [batch].

        Nothing here waits for the device.
        """
        rows = slice(first, first + len(outputs))
        logits = torch.stack([output.logits for output in outputs]).float()  # [orders, batch, classes]
        predicted = best_class(logits)  # [orders, batch]
        right = predicted == labels
        log_probabilities = logits.log_softmax(dim=-1)

        # Of equal logits, topk may return another one first than max does. So top1 is counted by max, as everywhere
        # else.
        self.images[rows] += len(labels)
        self.nan[rows] += (predicted < 0).sum(dim=1)
        self.top1[rows] += right.sum(dim=1)
        likeliest = logits.topk(min(5, logits.shape[-1])).indices  # [orders, batch, 5]
        # An image with NaN counts as classified wrongly, whatever topk makes of its logits.
        among_likeliest = (likeliest == labels.unsqueeze(1)).any(dim=-1)  # [orders, batch]
        self.top5[rows] += (among_likeliest & (predicted >= 0)).sum(dim=1)

        # This is the cross-entropy. F.cross_entropy would compute the log probabilities once more.
        losses = F.nll_loss(log_probabilities.flatten(0, 1), labels.repeat(len(outputs)), reduction="none")
        self.loss[rows] += losses.view(len(outputs), -1).sum(dim=1)

        # Bin b holds the confidences from above b / BINS up to and including (b + 1) / BINS, as in the paper. An image
        # with NaN has confidence 0.
        confidence = log_probabilities.amax(dim=-1).exp().nan_to_num()
        bins = ((BINS * confidence).ceil().long() - 1).clamp(0, BINS - 1)
        gaps = (GAP_UNITS * (right.float() - confidence)).round().long()
        self.gaps[rows].scatter_add_(1, bins, gaps)

        self.add_positions(first, outputs)

    def compute(self) -> list[OrderScore]:
        """The scores of each order, as plain numbers.

        torchmetrics has added up the sums of all processes before it calls this.
        """
        # One transfer for each sum, not one for each order.
        gaps = self.gaps.abs().sum(dim=1)
        sums = (self.images, self.top1, self.top5, self.nan, self.positions, self.positions_right, self.loss, gaps)
        columns = [column.tolist() for column in sums]

        scores = []
        for images, top1, top5, nan, positions, positions_right, loss, gap in zip(*columns):
            score = OrderScore(
                images=images,
                top1=top1 / images,
                top5=top5 / images,
                loss=mean_loss(loss, images),
                position_accuracy=positions_right / positions if positions else None,
                nan=nan,
                ece=round(gap / GAP_UNITS / images, 6),
            )
            scores.append(score)
        return scores


class OutputBuffer:
    """Collects the outputs of a batch and adds many at a time to ``metrics``.

    Args:
        metrics: what counts them. The first output belongs to its order 0, the next to order 1 and so on.
        labels: of the batch.
    """

    def __init__(self, metrics: OrderTotals, labels: Tensor) -> None:
        self.metrics = metrics
        self.labels = labels
        self.counted = 0
        self.waiting: list[Output] = []

    def add(self, output: Output) -> None:
        """Take the output of the next order."""
        self.waiting.append(output)
        numbers = output.logits.numel()
        if output.position_logits is not None:
            numbers += output.position_logits.numel()
        if len(self.waiting) * numbers >= BUFFER_SIZE:
            self.flush()

    def flush(self) -> None:
        """Count what is waiting."""
        if self.waiting:
            self.metrics.update(self.counted, self.waiting, self.labels)
            self.counted += len(self.waiting)
            self.waiting = []
