"""How well each label is found in the orders that matter most, where images can have several labels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from layershuffle.data.label_scores import average_precisions, f1_of_classes, probabilities_of
from layershuffle.evaluation.order_groups import OrderGroup, order_groups
from layershuffle.models.model import Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results.measures import ByLabel, LabelScores


class LabelsOfOrders(Metric):
    """Keeps the probabilities of each image and label, in the fixed orders of protocols with ``by_class``.

    They take 4 bytes for each of these orders, image and label on the device.

    Args:
        trials: what is evaluated.
        thresholds: of each label, the probability from which on it is named.

    Attributes:
        groups: the orders whose scores are averaged.
        rows: the index of each order among the different orders of all groups.
        labels: uint8 [images, labels], in batches.
    """

    full_state_update = False
    labels: list[Tensor]
    thresholds: Tensor

    def __init__(self, trials: Sequence[Trial], thresholds: Sequence[float]) -> None:
        super().__init__()
        self.groups = order_groups(trials)
        self.rows: dict[Order, int] = {}
        for group in self.groups:
            for order in group.orders:
                self.rows.setdefault(order, len(self.rows))
        self.register_buffer("thresholds", torch.tensor(thresholds), persistent=False)
        self.add_state("labels", [], dist_reduce_fx="cat")
        for row in self.rows.values():
            self.add_state(f"probabilities_{row}", [], dist_reduce_fx="cat")

    def add(self, order: Order, output: Output, labels: Tensor) -> None:
        """Take one order's output for a batch, as ``scoring.evaluate`` gives it; labels: uint8 [batch, labels]."""
        if order in self.rows:
            self.update(order, output, labels)

    def update(self, order: Order, output: Output, labels: Tensor) -> None:
        """Keep the probabilities of a batch, whose labels are the same for every order."""
        row = self.rows[order]
        getattr(self, f"probabilities_{row}").append(probabilities_of(output.logits))
        if row == 0:
            self.labels.append(labels)

    def compute(self) -> tuple[Tensor, list[Tensor]]:
        """The labels, uint8 [images, labels], and by order the probabilities, float32 of the same shape."""
        probabilities = [dim_zero_cat(getattr(self, f"probabilities_{row}")) for row in self.rows.values()]
        return dim_zero_cat(self.labels), probabilities

    def by_label(self) -> ByLabel:
        """The scores of each label over all images, as results files keep them."""
        labels, probabilities = self.compute()
        precisions_of_orders = []
        f1_of_orders = []
        for order_probabilities in probabilities:
            precisions_of_orders.append(average_precisions(order_probabilities, labels))
            f1_of_orders.append(f1_of_classes(order_probabilities >= self.thresholds, labels))

        precisions = torch.stack(precisions_of_orders)  # [orders, labels]
        f1 = torch.stack(f1_of_orders)
        orders = [self._scores(group, precisions, f1) for group in self.groups]
        images = labels.sum(dim=0, dtype=torch.long)
        return ByLabel(images.tolist(), self.thresholds.tolist(), orders)

    def _scores(self, group: OrderGroup, precisions: Tensor, f1: Tensor) -> LabelScores:
        """The means over the orders of a group, from scores [orders, labels] of all orders."""
        # An order that a group samples twice counts twice, as it does in the mean of the scores.
        rows = [self.rows[order] for order in group.orders]
        return LabelScores(
            protocol=group.protocol,
            variant=group.variant,
            samples=len(rows),
            average_precision=_numbers(precisions[rows].nanmean(dim=0)),
            f1=_numbers(f1[rows].nanmean(dim=0)),
        )


def _numbers(shares: Tensor) -> list[float | None]:
    """Shares as results files keep them: rounded, and None in place of NaN, which JSON doesn't have."""
    return [None if math.isnan(share) else round(share, 6) for share in shares.tolist()]
