"""How many images a model classifies rightly under each corruption, in the orders that matter most."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from layershuffle.data.conditions import ConditionBatches
from layershuffle.evaluation.metrics import best_class
from layershuffle.evaluation.order_groups import order_groups
from layershuffle.models.model import Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results.measures import ByCorruptionCounts, Corruption, OrdersOnCorruptions


class ByCorruption(Metric):
    """Counts the images of each corruption, and those that are classified rightly, in the groups of ``order_groups``.

    Args:
        trials: what is evaluated.
        batches: the batches that are evaluated, which know their corruptions.

    Attributes:
        groups: the orders that are counted together.
        images: by group and corruption, the images; each counts once for each order of the group, int64.
        right: those of them that are classified rightly.
    """

    full_state_update = False
    images: Tensor
    right: Tensor

    def __init__(self, trials: Sequence[Trial], batches: ConditionBatches) -> None:
        super().__init__()
        self.batches = batches
        self.groups = order_groups(trials)
        shape = (len(self.groups), len(batches.conditions.names))
        for name in ("images", "right"):
            self.add_state(name, torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, order: Order, output: Output, labels: Tensor) -> None:
        """Take one order's output for the current batch, as ``scoring.evaluate`` gives it; labels: int64 [batch]."""
        corruptions = self.batches.current.to(labels.device)
        right = (best_class(output.logits.float()) == labels).long()
        for row, group in enumerate(self.groups):
            # An order that was sampled twice counts twice, as it does in the mean of the scores.
            times = group.orders.count(order)
            if times:
                self.images[row].index_add_(0, corruptions, torch.ones_like(right), alpha=times)
                self.right[row].index_add_(0, corruptions, right, alpha=times)

    def compute(self) -> tuple[Tensor, Tensor]:
        """The images by group and corruption, and how many of them are classified rightly, int64."""
        return self.images, self.right

    def counts(self) -> ByCorruptionCounts:
        """The counts as results files keep them."""
        images, right = self.compute()
        # Every order has classified the same images, so any group will do. It counts an image once for each of its
        # orders.
        images_by_corruption = images[0].cpu() // len(self.groups[0].orders)
        corruptions = []
        for (name, severity), count in zip(self.batches.conditions.names, images_by_corruption.tolist()):
            corruptions.append(Corruption(name, severity, count))

        orders = []
        for group, counts in zip(self.groups, right.tolist()):
            orders.append(OrdersOnCorruptions(group.protocol, group.variant, len(group.orders), counts))
        return ByCorruptionCounts(corruptions, orders)
