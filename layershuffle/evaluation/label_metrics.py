"""Mean average precision and F1 of many orders at once, where images can have several labels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.utilities.data import dim_zero_cat

from layershuffle.data.label_scores import macro_f1, mean_average_precision, probabilities_of
from layershuffle.errors import UserError
from layershuffle.evaluation.metrics import OrderScore, OrderTotals, mean_loss
from layershuffle.models.model import Output


class LabelMetrics(OrderTotals):
    """Mean average precision, F1, binary cross-entropy and position accuracy of ``count`` orders.

    Average precision ranks the images by their probabilities, so all of these have to be kept. They take 4 bytes on the
    device for each order, image and class.

    Args:
        count: the number of orders.
        thresholds: of each class, the probability from which on it is named.

    Attributes:
        labels: uint8 [images, classes], in batches.
    """

    labels: list[Tensor]
    thresholds: Tensor

    def __init__(self, count: int, thresholds: Sequence[float]) -> None:
        super().__init__(count)
        self.count = count
        self.register_buffer("thresholds", torch.tensor(thresholds), persistent=False)
        self.add_state("labels", [], dist_reduce_fx="cat")
        for row in range(count):
            self.add_state(f"probabilities_{row}", [], dist_reduce_fx="cat")

    def update(self, first: int, outputs: Sequence[Output], labels: Tensor) -> None:
        """Add a batch's outputs to the orders from number ``first`` on; labels: uint8 [batch, classes]."""
        rows = slice(first, first + len(outputs))
        logits = torch.stack([output.logits for output in outputs]).float()  # [orders, batch, classes]
        self.images[rows] += len(labels)
        self.nan[rows] += logits.isnan().any(dim=-1).sum(dim=1)
        targets = labels.float().expand_as(logits)
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        self.loss[rows] += losses.mean(dim=-1).sum(dim=1)
        self.add_positions(first, outputs)

        for row, probabilities in enumerate(probabilities_of(logits), first):
            getattr(self, f"probabilities_{row}").append(probabilities)
        # Every order has the same images, whose labels are kept once.
        if first == 0:
            self.labels.append(labels)

    def compute(self) -> list[OrderScore]:
        """The scores of each order, as plain numbers; raises UserError if no image shows any of the classes."""
        labels = dim_zero_cat(self.labels)
        if not labels.any():
            raise UserError("none of these images shows any of the classes, so that there is no average precision")
        # One transfer for each sum, not one for each order.
        sums = (self.images, self.nan, self.positions, self.positions_right, self.loss)
        columns = [column.tolist() for column in sums]
        scores = []
        for row, numbers in enumerate(zip(*columns)):
            images, nan, positions, positions_right, loss = numbers
            probabilities = dim_zero_cat(getattr(self, f"probabilities_{row}"))
            score = OrderScore(
                images=images,
                top1=None,
                top5=None,
                loss=mean_loss(loss, images),
                position_accuracy=positions_right / positions if positions else None,
                nan=nan,
                ece=None,
                map=round(float(mean_average_precision(probabilities, labels)), 6),
                f1=round(float(macro_f1(probabilities >= self.thresholds, labels)), 6),
            )
            scores.append(score)
        return scores
