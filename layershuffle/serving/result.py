"""What a request gets back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from layershuffle.checkpoints.likely_classes import likely_classes
from layershuffle.orders.order import Order


class Result(NamedTuple):
    """What a request gets back.

    Attributes:
        logits: [batch, classes].
        order: the order that ran.
        missed: the steps of the model's base order that were missed, by their indices.
        seconds: from the time when the request was routed until its last layer was done.
        bytes: how many bytes have travelled to nodes and back for it.
    """

    logits: Tensor
    order: Order
    missed: tuple[int, ...]
    seconds: float
    bytes: int

    def to_json(self, classes: Sequence[str], top: int) -> dict[str, Any]:
        """What the first image shows: the ``top`` likeliest of ``classes``, and how they came about."""
        likeliest = likely_classes(self.logits[:1], classes, top)
        return {
            "classes": [{"class": likely.name, "probability": round(likely.probability, 6)} for likely in likeliest],
            "order": str(self.order),
            "missed": list(self.missed),
            "seconds": round(self.seconds, 4),
        }
