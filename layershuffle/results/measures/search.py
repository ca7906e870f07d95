"""How an order was searched for."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layershuffle.errors import UserError
from layershuffle.plurals import counted
from layershuffle.results.figures.drawing import COLOURS, panels
from layershuffle.results.record import Measure, Results, register


@dataclass(frozen=True)
class SearchStep:
    """A step of a search.

    Attributes:
        order: the best order after this step, as text.
        loss: its mean cross-entropy on the images searched on, in nats, or None where it isn't finite.
    """

    order: str
    loss: float | None


@register
@dataclass(frozen=True)
class Search(Measure):
    """The search for an order.

    Attributes:
        strategy: "greedy", "climb" or "well-trained".
        images: how many images were searched on.
        exponents: the heavy-tail exponent of each layer, with the strategy "well-trained".
        trace: the steps of the search, with the other strategies.
    """

    name: ClassVar[str] = "search"
    picture: ClassVar[str] = "search"
    caption: ClassVar[str] = "The search for an order: the loss at each step, or the layers' ranks."
    protocols: ClassVar[tuple[str, ...]] = ("search",)
    strategy: str
    images: int
    exponents: list[float] | None = None
    trace: list[SearchStep] | None = None

    def check(self, results: Results) -> None:
        """Raise a UserError if it has neither or both of a trace and exponents."""
        if (self.exponents is None) == (self.trace is None):
            raise UserError("search has either the trace of a search or the layers' exponents")

    def figure(self, results: Results, title: str = "") -> Figure:
        """The loss by step, or the exponents by layer."""
        figure, (axis,) = panels(1, 6.4, 4.2, f"{title}: {self.strategy}" if title else self.strategy)
        if self.trace is not None:
            self._draw_trace(axis, self.trace)
        elif self.exponents is not None:
            layers = range(len(self.exponents))
            axis.bar(layers, self.exponents, color=COLOURS[0])
            axis.set(xlabel="layer", ylabel="heavy-tail exponent", xticks=layers)
        return figure

    def _draw_trace(self, axis: Axes, trace: list[SearchStep]) -> None:
        # NaN leaves a gap in the line.
        losses = [np.nan if step.loss is None else step.loss for step in trace]
        # A greedy search begins with one layer, the others with a whole order.
        if self.strategy == "greedy":
            first = 1
            label = "layers appended"
        else:
            first = 0
            label = "exchanges"
        steps = range(first, first + len(losses))
        axis.plot(steps, losses, "o-", color=COLOURS[0], markersize=4)
        axis.set(xlabel=label, ylabel=f"cross-entropy on the {counted(self.images, 'image')} searched on", xticks=steps)
        axis.set_ylim(bottom=0)
