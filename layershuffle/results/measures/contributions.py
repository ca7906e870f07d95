"""How much layers change what the model classifies by, at each position."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from layershuffle.errors import UserError
from layershuffle.orders.order import Order, Step
from layershuffle.plurals import counted
from layershuffle.results.estimates import summarise
from layershuffle.results.figures.drawing import LEVEL, coloured_panels
from layershuffle.results.record import Measure, ReportSection, Results, register
from layershuffle.results.table import Table


@register
@dataclass(frozen=True)
class Contributions(Measure):
    """How much each step changes what the model classifies by, of images that each ran in a random order.

    Attributes:
        orders: the order that each image ran in, as text.
        token: what the model classifies by: "class token" or "mean of the patch tokens".
        added: for each image the norm of each step's change.
        before: for each image the norm before each step.
        changes: for each image each step's change as a share of the norm. Files of version 0.2 and before have
            nothing but this and the orders, files since don't have it.
    """

    name: ClassVar[str] = "contributions"
    picture: ClassVar[str] = "contributions"
    caption: ClassVar[str] = (
        "How much each layer changes what the model classifies by, by how far the layer is from its original place."
    )
    section: ClassVar[ReportSection | None] = ReportSection(
        "What layers change",
        "how much each layer changes what the model classifies by, when images run in random orders, by how much "
        "later (or, below 0, earlier) than originally the layer ran. Means over the images.",
        paper_figures="4c and 4d",
        side_by_side=True,
    )
    orders: list[str]
    token: str | None = None
    added: list[list[float]] | None = None
    before: list[list[float]] | None = None
    changes: list[list[float]] | None = None

    @property
    def values(self) -> list[list[float]]:
        """For each image what was measured of each step: ``added``, or in older files ``changes``."""
        return self.added or self.changes or []

    def check(self, results: Results) -> None:
        """Raise a UserError if there isn't an order for each image, and a number for each of its steps."""
        if not self.orders or len(self.values) != len(self.orders):
            raise UserError(
                f"contributions has {counted(len(self.orders), 'order')} for {counted(len(self.values), 'image')}"
            )
        # Older files have no ``before``, of which then nothing is to be checked.
        for text, values, before in zip(self.orders, self.values, self.before or self.values):
            steps = len(Order(text))
            if len(values) != steps or len(before) != steps:
                raise UserError(f"contributions doesn't have a number for each step of the order {text}")

    @property
    def unit(self) -> str:
        """What was measured, in words."""
        text = f"norm of the change of the {self.token or 'class token'}"
        return text if self.added else f"{text}, over its norm"

    def by_step(self) -> dict[tuple[Step, int], list[float]]:
        """The changes in all images, by the step and the position that it held."""
        changes: dict[tuple[Step, int], list[float]] = {}
        for order, values in zip(self.orders, self.values):
            for position, (step, value) in enumerate(zip(Order(order), values)):
                changes.setdefault((step, position), []).append(value)
        return dict(sorted(changes.items()))

    def distance(self, results: Results, step: Step, position: int) -> int:
        """How much later than originally ``step`` runs at ``position``; if it is repeated, than at the nearest place.

        Files of version 0.2 and before lack the model's base order, which is taken to have been ascending.
        """
        base_order = results.evaluation.order or sorted(Order(self.orders[0]))
        distances = [position - place for place, other in enumerate(Order(base_order)) if other == step]
        return min(distances, key=abs)

    def figure(self, results: Results, title: str = "") -> Figure:
        """One panel: a line for each step, by how far it is from its original place."""
        return self.compared([results])

    @classmethod
    def compared(cls, several: Sequence[Results]) -> Figure:
        """A panel for each model and a line for each layer, as in figures 4c and 4d of arXiv 2407.04513."""
        measured = list(_measured(several))
        # All panels have the same colour for the same step, even if one model runs more steps than another.
        present: set[Step] = set()
        for _, measure in measured:
            for step, _ in measure.by_step():
                present.add(step)
        steps = sorted(present)
        names = [str(Order([step])) for step in steps]
        figure, axes, colours = coloured_panels(several, 4.6, "layer", names)
        for axis in axes[1:]:
            axis.sharey(axes[0])
        for axis, (results, measure) in zip(axes, measured):
            _draw_changes(axis, results, measure, steps, colours)
        return figure

    @classmethod
    def compared_data(cls, several: Sequence[Results]) -> tuple[str, Table]:
        """The mean and the spread over the images of every change of every model."""
        header = ["method", "measured", "step", "position", "distance", "mean", "std", "images"]
        rows = []
        for results, measure in _measured(several):
            for (step, position), values in measure.by_step().items():
                distance = measure.distance(results, step, position)
                place = [str(Order([step])), str(position), str(distance)]
                summary = summarise(values)
                mean = f"{summary.mean:.4g}"
                std = "" if summary.std is None else f"{summary.std:.4g}"
                rows.append([results.label, measure.unit, *place, mean, std, str(summary.n)])
        return "the change that a layer makes at a position", Table(header, rows)


def _measured(several: Sequence[Results]) -> Iterator[tuple[Results, Contributions]]:
    """The results that have this measure, each with it."""
    for results in several:
        measure = results.measure(Contributions)
        if measure:
            yield results, measure


def _draw_changes(
    axis: Axes, results: Results, measure: Contributions, steps: Sequence[Step], colours: ScalarMappable
) -> None:
    """Draw one model's lines, in the colours that the steps have by their places in ``steps``."""
    # The changes by step and then by distance: a step that is repeated has several positions at the same distance.
    lines: dict[Step, dict[int, list[float]]] = {}
    for (step, position), values in measure.by_step().items():
        line = lines.setdefault(step, {})
        line.setdefault(measure.distance(results, step, position), []).extend(values)
    for step, line in lines.items():
        colour = colours.to_rgba(np.array(steps.index(step)))
        distances = sorted(line)
        means = [fmean(line[distance]) for distance in distances]
        axis.plot(distances, means, ".-", color=colour, linewidth=1, markersize=4)
    axis.axvline(0, **LEVEL)
    axis.set(title=results.label, yscale="log", ylabel=measure.unit)
    axis.set_xlabel("position, less the layer's original one")
    # The changes often lie within one power of ten, where the axis would have one label.
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.spines[["top", "right"]].set_visible(False)
