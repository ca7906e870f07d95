"""Scores instance-wise reordering: each image in the order it chooses, and in the best one (IOT, arXiv 2103.03457)."""

from collections.abc import Collection
from typing import cast, get_args

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.nn import functional as F

from layershuffle.evaluation.metrics import OrderMetrics, OrderScore, best_class
from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Pick, Scorable


class InstanceWiseScores:
    """Scores the picks that ``scorables`` asks for: "chosen", "oracle", both or, in most evaluations, none.

    Args:
        model: the model, on its device.
        scorables: all that is to be scored.
        device: where the model is.

    Attributes:
        orders: the orders from which the images choose, which have to run in each batch; empty if no pick is asked for.
    """

    def __init__(self, model: OrderedViT, scorables: Collection[Scorable], device: torch.device) -> None:
        self.picks: list[Pick] = [pick for pick in get_args(Pick) if pick in scorables]
        self.choice = model.choice if self.picks else None
        self.orders: tuple[Order, ...] = ()
        if self.choice is not None:
            self.orders = self.choice.orders
        self.metrics = OrderMetrics(len(self.picks)).to(device)
        # On the device, so that counting an image doesn't wait for it.
        self.images_by_order = torch.zeros(len(self.orders), device=device)
        self._logits: dict[Order, Tensor] = {}  # the outputs that the current batch has had in ``orders``

    def add(self, order: Order, output: Output) -> None:
        """Take one order's output for the batch."""
        if order in self.orders:
            self._logits[order] = output.logits.float()

    def end_batch(self, model: OrderedViT, images: Tensor, labels: Tensor) -> None:
        """Count the batch, of which ``add`` has got the outputs of all of ``orders``."""
        if self.choice is None:
            return
        logits = torch.stack([self._logits.pop(order) for order in self.orders])  # [orders, batch, classes]
        # The choice looks at the tokens before the first layer, as in training.
        choice_logits = self.choice(model.embed(images).tokens)  # [batch, orders]
        picked = {"chosen": choice_logits.argmax(dim=1), "oracle": best_order(logits, labels)}
        self.images_by_order += self.choice.count(picked["chosen"])

        # A pick is counted like an order: the logits of each image are those of the order that is picked for it.
        rows = torch.arange(len(labels), device=labels.device)
        for number, pick in enumerate(self.picks):
            self.metrics.update(number, [Output(logits[picked[pick], rows])], labels)

    def scores(self) -> dict[Scorable, OrderScore]:
        """The scores of the picks over all batches and processes."""
        if not self.picks:
            return {}
        return dict(zip(self.picks, self.metrics.compute()))

    def shares(self, fabric: Fabric) -> dict[Scorable, float]:
        """The share of images, of all processes, that chose each order."""
        if not self.orders:
            return {}
        images = cast(Tensor, fabric.all_reduce(self.images_by_order, reduce_op="sum"))
        return dict(zip(self.orders, (images / images.sum()).tolist()))


def best_order(logits: Tensor, labels: Tensor) -> Tensor:
    """The index of the order that suits each image best, int64 [batch].

    It is the one with the lowest loss of those in which the image is classified rightly, or of all if there are none.

    Args:
        logits: float32 [orders, batch, classes].
        labels: int64 [batch].
    """
    # The loss is computed order by order, because cross_entropy expects the classes in the second dimension.
    losses = torch.stack([F.cross_entropy(order_logits, labels, reduction="none") for order_logits in logits])
    losses = losses.nan_to_num(nan=torch.inf)  # argmin takes NaN for the smallest number
    # A penalty, larger than losses ever are, puts the orders in which an image is classified wrongly last.
    wrong = best_class(logits) != labels
    return (losses + 1e6 * wrong).argmin(dim=0)
