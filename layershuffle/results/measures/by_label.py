"""How well each label is found, where images can have several."""

import textwrap
from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from layershuffle.errors import UserError
from layershuffle.plurals import counted
from layershuffle.results.figures.drawing import grouped_bars, legend_below, panels
from layershuffle.results.measures.kind_of_orders import KindOfOrders
from layershuffle.results.record import Measure, Results, register
from layershuffle.results.table import Table

MAX_IN_PICTURE = 30
"""With more labels, the picture has those with the lowest average precision."""


@dataclass(frozen=True)
class LabelScores(KindOfOrders):
    """How well each label is found in the orders of one protocol and variant.

    Attributes:
        average_precision: of each label, the mean over the orders, 0 to 1; None if no image shows it.
        f1: of each label, the same of the F1 of naming it from its threshold on; None if no image shows it and no order
            names it.
    """

    average_precision: list[float | None]
    f1: list[float | None]

    def check(self, labels: int) -> None:
        """Raise a UserError if there isn't a share for each of the labels."""
        for shares in (self.average_precision, self.f1):
            if len(shares) != labels:
                raise UserError(f"by_label has {counted(len(shares), 'score')} of {counted(labels, 'label')}")
            if not all(share is None or 0 <= share <= 1 for share in shares):
                raise UserError(f"by_label has a score in {self.protocol} orders that isn't from 0 to 1")


@register
@dataclass(frozen=True)
class ByLabel(Measure):
    """How well each label is found.

    Attributes:
        images: of each label, how many images show it.
        thresholds: of each label, the probability from which on it is named.
        orders: the scores in each kind of order.
    """

    name: ClassVar[str] = "by_label"
    picture: ClassVar[str] = "labels"
    caption: ClassVar[str] = "How well each label is found."
    images: list[int]
    thresholds: list[float]
    orders: list[LabelScores]

    def check(self, results: Results) -> None:
        """Raise a UserError if the labels aren't those of the data, or a label lacks a score."""
        labels = len(self.images)
        names = results.data.classes
        are_all_named = names is None or len(names) == labels
        if not self.orders or len(self.thresholds) != labels or not are_all_named:
            raise UserError(f"by_label has no scores, or other ones than those of {counted(labels, 'label')}")
        for scores in self.orders:
            scores.check(labels)

    def label_names(self, results: Results) -> list[str]:
        """What each label is called: its name where the data has names, else its number."""
        return results.data.classes or [str(index) for index in range(len(self.images))]

    def worst_first(self) -> list[int]:
        """The labels that some image shows, by their average precision in the first kind of order."""
        precisions = self.orders[0].average_precision
        # Labels of the same precision stay in the sequence of their numbers.
        shown = [(precision, label) for label, precision in enumerate(precisions) if precision is not None]
        return [label for _, label in sorted(shown)]

    def tables(self, results: Results) -> dict[str, Table]:
        """The average precision and the F1 of each label. The lowest precisions come first."""
        header = ["label", "images", "threshold"]
        for scores in self.orders:
            header += [f"{scores.name}: AP %", "F1 %"]
        names = self.label_names(results)
        rows = []
        for label in self.worst_first():
            row = [names[label], str(self.images[label]), f"{self.thresholds[label]:.2f}"]
            for scores in self.orders:
                row += [_percent(scores.average_precision[label]), _percent(scores.f1[label])]
            rows.append(row)
        return {"labels": Table(header, rows)}

    def files(self, results: Results) -> dict[str, Table]:
        """The same table."""
        return self.tables(results)

    def data(self, results: Results) -> tuple[str, Table]:
        """The same table."""
        return "average precision and F1 in percent", self.tables(results)["labels"]

    def figure(self, results: Results, title: str = "") -> Figure:
        """Bars of the average precision of each label, one for each kind of order."""
        names = self.label_names(results)
        labels = self.worst_first()[:MAX_IN_PICTURE]
        figure, (axis,) = panels(1, 7.6, 1.2 + 0.2 * len(labels) * len(self.orders), title, grid=False)
        kinds = []
        for scores in self.orders:
            precisions = [100 * (scores.average_precision[label] or 0) for label in labels]
            kinds.append((textwrap.shorten(scores.name, 30), precisions))
        groups = []
        for label in labels:
            name = textwrap.shorten(names[label], 30)
            groups.append(f"{name} ({self.images[label]})")
        grouped_bars(axis, kinds, groups)
        axis.set(xlabel="average precision, %", xlim=(0, 100))
        legend_below(figure)
        return figure

    def caption_for(self, results: Results) -> str:
        """Which labels the picture shows, and what the numbers behind them are."""
        shown = "The average precision of each label"
        if len(self.worst_first()) > MAX_IN_PICTURE:
            shown = f"The {MAX_IN_PICTURE} labels with the lowest average precision"
        return f"{shown}; in brackets, how many images show it."


def _percent(share: float | None) -> str:
    """A share in percent; "n/a" if there is none."""
    return "n/a" if share is None else f"{100 * share:.2f}"
