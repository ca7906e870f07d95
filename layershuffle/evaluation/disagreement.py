"""How far random orders disagree about an image, and whether that tells which answers are wrong."""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from layershuffle.evaluation.ensemble import Ensemble
from layershuffle.evaluation.metrics import OrderMetrics, best_class
from layershuffle.evaluation.order_groups import OrderGroup, order_groups
from layershuffle.evaluation.selective import accuracy_at, error_auroc, selective_accuracy
from layershuffle.models.model import Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.results.measures import Disagreement, EnsembleOfOrders
from layershuffle.results.measures.disagreement import COVERAGE


class OrdersTogether:
    """Follows an evaluation and treats fixed orders of the same protocol and variant as one ensemble.

    Args:
        trials: what is evaluated.
        device: where the outputs are.
    """

    def __init__(self, trials: Sequence[Trial], device: torch.device) -> None:
        # A single order always agrees with itself, so that there is nothing to measure.
        groups = [group for group in order_groups(trials) if len(group.orders) > 1]
        self.groups = [_Group(group).to(device) for group in groups]

    def add(self, order: Order, output: Output, labels: Tensor) -> None:
        """Take one order's output for a batch, as ``scoring.evaluate`` gives it; labels: int64 [batch]."""
        for group in self.groups:
            if order in group.times:
                group.update(order, output.logits, labels)

    def disagreement(self) -> Disagreement:
        """What results files keep of all images together."""
        return Disagreement([group.summary() for group in self.groups])


class _Group(Metric):
    """The answers of one group of orders, of which a few numbers are kept for each image.

    Attributes:
        times: how often each order counts.
        uncertainty: by batch, 1 less the largest mean probability, float32 [batch].
        disagreement: by batch, the mutual information, in nats.
        agreement: by batch, the share of orders that agree with the mean.
        right: by batch, 1 where the class with the largest mean probability is the label, else 0. They are floats,
            because torchmetrics fills in floats for a process without images.
    """

    full_state_update = False
    uncertainty: list[Tensor]
    disagreement: list[Tensor]
    agreement: list[Tensor]
    right: list[Tensor]

    def __init__(self, group: OrderGroup) -> None:
        super().__init__()
        self.group = group
        self.times = Counter(group.orders)
        self.scores = OrderMetrics(1)
        self._begin_batch()
        for name in ("uncertainty", "disagreement", "agreement", "right"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def _begin_batch(self) -> None:
        """Forget the orders of the batch before, and expect all orders of the group."""
        self._ensemble = Ensemble()
        self._missing = len(self.times)

    def update(self, order: Order, logits: Tensor, labels: Tensor) -> None:
        """Take the logits [batch, classes] of one order; after the last order of the group, the batch is counted."""
        for _ in range(self.times[order]):
            self._ensemble.add(logits)
        self._missing -= 1
        if self._missing:
            return

        probabilities = self._ensemble.probabilities
        # The mean is scored like the output of an order. That has to be logits: the softmax of the mean's logarithm is
        # the mean itself.
        self.scores.update(0, [Output(probabilities.log())], labels)
        # An image whose logits are NaN counts as entirely uncertain.
        self.uncertainty.append(1 - probabilities.amax(dim=-1).nan_to_num(0))
        self.disagreement.append(self._ensemble.mutual_information().nan_to_num(math.log(probabilities.shape[-1])))
        self.agreement.append(self._ensemble.agreement())
        self.right.append((best_class(probabilities) == labels).float())
        self._begin_batch()

    def compute(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Uncertainty, disagreement, agreement, and whether the answer is right, of all images of all processes."""
        uncertainty = dim_zero_cat(self.uncertainty)
        disagreement = dim_zero_cat(self.disagreement)
        agreement = dim_zero_cat(self.agreement)
        return uncertainty, disagreement, agreement, dim_zero_cat(self.right).bool()

    def summary(self) -> EnsembleOfOrders:
        """What results files keep of the group."""
        (score,) = self.scores.compute()
        # These are None only where images can have several labels.
        assert score.top1 is not None
        assert score.ece is not None
        uncertainty, disagreement, agreement, right = self.compute()
        # Disagreement is scaled to lie between 0 and 1, because torchmetrics would take larger numbers for logits.
        largest = max(1.0, float(disagreement.max()))
        return EnsembleOfOrders(
            protocol=self.group.protocol,
            variant=self.group.variant,
            samples=len(self.group.orders),
            top1=score.top1,
            loss=score.loss,
            ece=score.ece,
            agreement=round(float(agreement.double().mean()), 6),
            disagreement=round(float(disagreement.double().mean()), 6),
            auroc_of_probability=_rounded(error_auroc(uncertainty, right)),
            auroc_of_disagreement=_rounded(error_auroc(disagreement / largest, right)),
            accuracy_of_surest=round(accuracy_at(COVERAGE, selective_accuracy(uncertainty, right)), 6),
        )


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 6)
