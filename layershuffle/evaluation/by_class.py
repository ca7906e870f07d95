"""Which classes a model takes for which, in the orders that matter most."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from layershuffle.evaluation.metrics import best_class
from layershuffle.evaluation.order_groups import order_groups
from layershuffle.models.model import Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results.measures import ByClassCounts, OrderCounts

MAX_PAIRS = 10_000
"""How many confusions results keep: all of up to 100 classes, the most frequent ones of more."""


class ByClass(Metric):
    """Counts how the images of each class are classified, in the fixed orders of protocols with ``by_class``.

    Orders of the same variant are counted together. torchmetrics has confusion matrices too, but takes NaN for a class
    and makes the device wait.

    Args:
        trials: what is evaluated.
        classes: how many there are.

    Attributes:
        groups: the orders that are counted together.
        rows: for each order the indices of its groups. An order that a group samples twice has the index twice, so that
            its images count twice, as they do in the mean of the scores.
    """

    full_state_update = False
    matrices: Tensor

    def __init__(self, trials: Sequence[Trial], classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.groups = order_groups(trials)
        self.rows: dict[Order, list[int]] = {}
        for index, group in enumerate(self.groups):
            for order in group.orders:
                self.rows.setdefault(order, []).append(index)

        # For each group a matrix of images by class and predicted class, which is flattened. Its last column is for
        # images whose logits are NaN.
        matrices = torch.zeros(len(self.groups), classes * (classes + 1), dtype=torch.long)
        self.add_state("matrices", matrices, dist_reduce_fx="sum")

    def add(self, order: Order, output: Output, labels: Tensor) -> None:
        """Take one order's output for a batch, as ``scoring.evaluate`` gives it; labels: int64 [batch]."""
        if order in self.rows:
            self.update(order, output, labels)

    def update(self, order: Order, output: Output, labels: Tensor) -> None:
        """Count the images of a batch; labels: int64 [batch]."""
        predicted = best_class(output.logits.float())
        columns = predicted.where(predicted >= 0, self.classes)
        cells = labels * (self.classes + 1) + columns  # indices into a flattened matrix
        # bincount would count as well, but has to know the largest index, for which Python would wait for the device.
        for row in self.rows[order]:
            self.matrices[row].index_add_(0, cells, torch.ones_like(cells))

    def compute(self) -> Tensor:
        """The number of images by group of orders, class and predicted class, int64 [groups, classes, classes + 1].

        The last column is for images whose logits are NaN.
        """
        return self.matrices.view(len(self.groups), self.classes, -1)

    def counts(self) -> ByClassCounts:
        """How many images there are of each class, and how they were classified in each group of orders."""
        matrices = self.compute().cpu()
        counts = []
        for group, matrix in zip(self.groups, matrices):
            order_counts = OrderCounts(
                protocol=group.protocol,
                variant=group.variant,
                samples=len(group.orders),
                right=matrix.diagonal().tolist(),
                confused=self._most_confused(matrix),
                balanced_accuracy=balanced_accuracy(matrix),
                macro_f1=_macro_f1(matrix),
            )
            counts.append(order_counts)

        # Every order of a group has classified all images, so the matrix holds each image ``samples`` times.
        images = matrices[0].sum(dim=1) // counts[0].samples
        return ByClassCounts(images.tolist(), counts)

    def _most_confused(self, matrix: Tensor) -> list[tuple[int, int, int]]:
        """The most frequent mistakes, as (class, predicted class, images); matrix: [classes, classes + 1]."""
        mistakes = matrix[:, : self.classes].clone().fill_diagonal_(0).flatten()
        kept = min(MAX_PAIRS, int(mistakes.count_nonzero()))
        # Stable, so that equally frequent mistakes stand in the sequence of the classes on every machine.
        most_frequent = mistakes.argsort(descending=True, stable=True)[:kept]

        pairs = []
        for cell in most_frequent.tolist():
            true_class, predicted_class = divmod(cell, self.classes)
            pairs.append((true_class, predicted_class, int(mistakes[cell])))
        return pairs


def balanced_accuracy(matrix: Tensor) -> float:
    """The mean of the accuracies of the classes that have images, 0 to 1.

    Args:
        matrix: images by class (row) and predicted class (column), which may have a column more for no class at all.
    """
    images = matrix.sum(dim=1)
    # A class without images has no accuracy.
    present = images > 0
    accuracies = matrix.diagonal()[present] / images[present]
    return round(float(accuracies.double().mean()), 6)


def _macro_f1(matrix: Tensor) -> float:
    """The mean F1 of the classes that have images or are predicted; matrix: [classes, classes + 1].

    F1 is the harmonic mean of precision and recall, which is 2 TP / (images of the class + predictions of the class).
    """
    right = matrix.diagonal()
    images = matrix.sum(dim=1)
    predictions = matrix[:, :-1].sum(dim=0)
    # A class that has no images and is never predicted has no F1. If it counted as 0, the mean would be too low for a
    # small test set, in which classes are missing.
    counted = images + predictions > 0
    f1 = 2 * right[counted] / (images + predictions)[counted]
    return round(float(f1.double().mean()), 6)
