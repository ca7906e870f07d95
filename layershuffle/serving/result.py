"""What a request gets back."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
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
        named = [{"class": likely.name, "probability": round(likely.probability, 6)} for likely in likeliest]
        return {"classes": named, **self.run_to_json()}

    def run_to_json(self) -> dict[str, Any]:
        """How the request ran."""
        return {"order": str(self.order), "missed": list(self.missed), "seconds": round(self.seconds, 4)}


def answer_of_runs(results: Sequence[Result], classes: Sequence[str], top: int) -> dict[str, Any]:
    """What an image shows on average over several runs, each in the order that it happened to take.

    Args:
        results: of one request with one image for each run.
        classes: the names of the classes.
        top: how many of the likeliest to name.

    Returns:
        What an HTTP answer holds: of each class the mean ``probability`` and the ``share_of_runs`` in which it came
        first, both 0 to 1; the ``disagreement`` of the runs in nats, as ``LikelyClasses`` has it; and the ``runs``.
    """
    logits = torch.cat([result.logits for result in results])
    found = likely_classes(logits, classes, top)
    named = []
    for likely in found:
        probability = round(likely.probability, 6)
        named.append({"class": likely.name, "probability": probability, "share_of_runs": round(likely.first, 6)})
    runs = [result.run_to_json() for result in results]
    return {"classes": named, "disagreement": round(found.disagreement, 6), "runs": runs}
