"""Which classes a model takes for which, in the orders that matter most."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from layershuffle.evaluation.scoring import best_class
from layershuffle.models.model import Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results.measures import ByClassCounts, OrderCounts

PROTOCOLS = ("sequential", "arbitrary", "given")
"""Those whose orders are counted by class. For all orders of a landscape this would take too much time and memory."""
MOST_PAIRS = 10_000
"""So many pairs of a class and another one are kept: all pairs of up to 100 classes, else the most frequent ones."""


class ByClass(Metric):
    """Counts by class how images are classified, for the fixed orders among ``to_score`` that are of PROTOCOLS.

    Orders of the same variant are counted together. torchmetrics has confusion matrices too, but takes NaN for a class
    and makes the device wait.

    Args:
        to_score: what is evaluated.
        classes: how many there are.
    """

    full_state_update = False
    matrices: Tensor

    def __init__(self, to_score: Sequence[Trial], classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.groups: list[dict[str, Any]] = []
        self.rows: dict[Order, list[int]] = {}
        for trial in to_score:
            if trial.protocol in PROTOCOLS and isinstance(trial.order, Order):
                group = {"protocol": trial.protocol, "variant": trial.variant}
                if group not in self.groups:
                    self.groups.append(group)
                self.rows.setdefault(trial.order, []).append(self.groups.index(group))
        # Images by group, class and predicted class; the last column is for logits with NaN.
        self.add_state(
            "matrices", torch.zeros(len(self.groups), classes * (classes + 1), dtype=torch.long), dist_reduce_fx="sum"
        )

    def add(self, order: Order, output: Output, labels: Tensor) -> None:
        """Take one order's output for a batch, as ``scoring.evaluate`` gives it; labels: int64 [batch]."""
        if order in self.rows:
            self.update(order, output, labels)

    def update(self, order: Order, output: Output, labels: Tensor) -> None:
        """Count the images of a batch; labels: int64 [batch]."""
        predicted = best_class(output.logits.float())
        columns = predicted.where(predicted >= 0, self.classes)
        cells = labels * (self.classes + 1) + columns
        for row in self.rows[order]:
            self.matrices[row].index_add_(0, cells, torch.ones_like(cells))

    def compute(self) -> Tensor:
        """Images by group of orders, class and predicted class, int64; the last column is for logits with NaN."""
        return self.matrices.view(len(self.groups), self.classes, -1)

    def counts(self) -> ByClassCounts:
        """How many images there are of each class, and how they were classified in each group of orders."""
        matrices = self.compute().cpu()
        counts = []
        for index, (group, matrix) in enumerate(zip(self.groups, matrices)):
            right = matrix.diagonal().tolist()
            wrong = matrix[:, : self.classes].clone().fill_diagonal_(0).flatten()
            often = wrong.argsort(descending=True, stable=True)[: min(MOST_PAIRS, int(wrong.count_nonzero()))]
            pairs = [(cell // self.classes, cell % self.classes, int(wrong[cell])) for cell in often.tolist()]
            draws = sum(row == index for rows in self.rows.values() for row in rows)
            counts.append(OrderCounts(group["protocol"], group["variant"], draws, right, pairs))
        images = matrices[0].sum(dim=1) // counts[0].samples
        return ByClassCounts(images.tolist(), counts)
