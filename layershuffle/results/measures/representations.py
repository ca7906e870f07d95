"""What a layer puts out at each position."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.figure import Figure

from layershuffle.errors import UserError
from layershuffle.orders.order import Order
from layershuffle.plurals import counted
from layershuffle.results.figures.drawing import coloured_panels
from layershuffle.results.record import Measure, ReportSection, Results, register
from layershuffle.results.table import Table


@register
@dataclass(frozen=True)
class Representations(Measure):
    """Outputs of one layer in a plane, of images that each ran in a random order.

    Attributes:
        orders: the order that each image ran in, as text.
        layer: whose outputs they are.
        positions: for each output the position at which the layer ran.
        plane: for each output its place (x, y) in UMAP's plane, which has no unit.
    """

    name: ClassVar[str] = "representations"
    picture: ClassVar[str] = "representations"
    caption: ClassVar[str] = "UMAP of a layer's output, coloured by the position that it held."
    section: ClassVar[ReportSection | None] = ReportSection(
        "What layers put out",
        "UMAP of one layer's whole output, all tokens, a point for each image, run by itself in a random order; "
        "its colour is the position that the layer held.",
        paper_figures="4a and 4b",
        side_by_side=True,
    )
    orders: list[str]
    layer: int
    positions: list[int]
    plane: list[tuple[float, float]]

    @property
    def steps(self) -> int:
        """How many positions there are."""
        return len(Order(self.orders[0]))

    def check(self, results: Results) -> None:
        """Raise a UserError if there isn't a position for each point, or a position isn't one of the order's."""
        if not self.orders or not self.plane or len(self.positions) != len(self.plane):
            points = counted(len(self.plane), "point")
            raise UserError(f"representations has {counted(len(self.positions), 'position')} for {points}")
        if not all(0 <= position < self.steps for position in self.positions):
            raise UserError(f"representations has positions beyond the {self.steps} of the order")

    def figure(self, results: Results, title: str = "") -> Figure:
        """One panel: each output's place in the plane."""
        return self.compared([results])

    @classmethod
    def compared(cls, several: Sequence[Results]) -> Figure:
        """A panel for each model, as in figures 4a and 4b of arXiv 2407.04513."""
        measured = list(_measured(several))
        # All panels have the same colour for the same position, even if one model runs more steps than another.
        positions = range(max(measure.steps for _, measure in measured))
        figure, axes, colours = coloured_panels(several, 4.6, "position", positions)
        for axis, (results, measure) in zip(axes, measured):
            # Thousands of points are drawn as pixels: as shapes, they would make the page large and slow.
            x, y = np.array(measure.plane).T
            axis.scatter(x, y, c=colours.to_rgba(np.array(measure.positions)), s=8, linewidths=0, rasterized=True)
            axis.set(title=f"{results.label}, layer {measure.layer}", xticks=[], yticks=[])
        return figure

    @classmethod
    def compared_data(cls, several: Sequence[Results]) -> tuple[str, Table]:
        """Every point of every model."""
        rows = []
        for results, measure in _measured(several):
            for position, (x, y) in zip(measure.positions, measure.plane):
                rows.append([results.label, str(position), str(x), str(y)])
        return "UMAP's plane has no unit", Table(["method", "position", "x", "y"], rows)


def _measured(several: Sequence[Results]) -> Iterator[tuple[Results, Representations]]:
    """The results that have this measure, each with it."""
    for results in several:
        measure = results.measure(Representations)
        if measure:
            yield results, measure
