"""How far the random orders of an evaluation disagree, and what they know together."""

from dataclasses import dataclass
from typing import ClassVar

from layershuffle.errors import UserError
from layershuffle.results.estimates import of_images
from layershuffle.results.measures.kind_of_orders import KindOfOrders
from layershuffle.results.record import Measure, Results, register
from layershuffle.results.table import Table
from layershuffle.results.tables.wording import percent

COVERAGE = 0.8
"""``accuracy_of_surest`` is the accuracy on this share of the images."""


@dataclass(frozen=True)
class EnsembleOfOrders(KindOfOrders):
    """Several orders of one protocol and variant as an ensemble, whose probabilities are the means over the orders.

    Attributes:
        top1: the accuracy of the ensemble, 0 to 1.
        loss: its mean cross-entropy, in nats, or None where it isn't finite.
        ece: its expected calibration error, 0 to 1, as in ``Score``.
        agreement: the share of orders whose likeliest class is that of the ensemble, mean over the images, 0 to 1.
        disagreement: the mutual information between class and order, mean over the images, in nats. It is 0 if all
            orders have the same probabilities, and at most the logarithm of the number of classes.
        auroc_of_probability: how often a wrong answer of the ensemble has a lower probability than a right one, 0 to 1;
            None if all answers are right or all are wrong, as the next.
        auroc_of_disagreement: how often the orders disagree more about a wrong answer than about a right one.
        accuracy_of_surest: the accuracy on the 80% of the images whose answers have the largest probabilities, 0 to 1.
    """

    top1: float
    loss: float | None
    ece: float
    agreement: float
    disagreement: float
    auroc_of_probability: float | None
    auroc_of_disagreement: float | None
    accuracy_of_surest: float

    def check(self) -> None:
        """Raise a UserError if a share isn't one, or there are too few orders to disagree."""
        aurocs = (self.auroc_of_probability, self.auroc_of_disagreement)
        shares = (self.top1, self.ece, self.agreement, self.accuracy_of_surest, *aurocs)
        if not all(share is None or 0 <= share <= 1 for share in shares):
            raise UserError(f"disagreement has a share of {self.protocol} orders that isn't from 0 to 1")
        if self.samples < 2 or self.disagreement < 0:
            raise UserError(f"disagreement can't be {self.disagreement} between {self.samples} {self.protocol} orders")


@register
@dataclass(frozen=True)
class Disagreement(Measure):
    """How far orders disagree.

    Attributes:
        groups: the orders that are taken together.
    """

    name: ClassVar[str] = "disagreement"
    groups: list[EnsembleOfOrders]

    def check(self, results: Results) -> None:
        """Raise a UserError if a group can't be what it says."""
        for group in self.groups:
            group.check()

    def tables(self, results: Results) -> dict[str, Table]:
        """A row for each group of orders."""
        header = ["orders", "n", "top-1 %", "ECE %", "agree %", "nats", "AUROC %", "surest 80%"]
        rows = []
        for group in self.groups:
            auroc = group.auroc_of_probability
            row = [
                group.name,
                str(group.samples),
                percent(of_images(group.top1, results.data.images)),
                f"{100 * group.ece:.2f}",
                f"{100 * group.agreement:.1f}",
                f"{group.disagreement:.3f}",
                "" if auroc is None else f"{100 * auroc:.1f}",
                f"{100 * group.accuracy_of_surest:.2f}",
            ]
            rows.append(row)
        return {"together": Table(header, rows)}
