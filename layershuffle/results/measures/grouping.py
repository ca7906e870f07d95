"""Which layers run side by side, and how long an image then takes."""

from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from layershuffle.errors import UserError
from layershuffle.results.figures.drawing import COLOURS, draw_base_and_levels, panels
from layershuffle.results.record import Measure, Results, register
from layershuffle.results.table import Table


@register
@dataclass(frozen=True)
class Grouping(Measure):
    """The search for groups of layers that run side by side.

    Attributes:
        milliseconds: the time of one image by the order, whose groups are merged; empty if no time was measured.
        chosen: the order that was chosen, as text.
    """

    name: ClassVar[str] = "grouping"
    picture: ClassVar[str] = "grouping"
    caption: ClassVar[str] = (
        "Accuracy of the best groups of each number of steps, and the time of one image when they are merged; the "
        "order that meets the budget is ringed."
    )
    protocols: ClassVar[tuple[str, ...]] = ("grouping",)
    milliseconds: dict[str, float]
    chosen: str

    def check(self, results: Results) -> None:
        """Raise a UserError if an order that was scored has no time."""
        for score in results.of("grouping"):
            if self.milliseconds and score.order not in self.milliseconds:
                raise UserError(f"grouping has no time for {score.order}")

    def figure(self, results: Results, title: str = "") -> Figure:
        """Accuracy against steps, and in a second panel the times against steps, if there are any."""
        scores = results.of("grouping")
        steps = [score.variant["steps"] for score in scores]
        # What each panel shows, by the name of its y axis: what fewer steps cost in accuracy, and what time they save.
        shown = {f"{results.quality_in_words}, %": [100 * score.quality for score in scores]}
        if self.milliseconds:
            shown["ms, one image"] = [self.milliseconds[str(score.order)] for score in scores]
        figure, axes = panels(len(shown), 5.25 * len(shown), 4.4, title, shares_y=False)
        for axis, (name, values) in zip(axes, shown.items()):
            axis.plot(steps, values, "o-", color=COLOURS[0], markersize=4, label="best groups")
            for score, number, value in zip(scores, steps, values):
                if score.order == self.chosen:
                    axis.plot(number, value, "o", color=COLOURS[1], markersize=11, fillstyle="none", label="chosen")
            axis.set(xlabel="steps", xticks=steps, ylabel=name, ylim=(0, None))
            # Fewer steps, to the right, take less time.
            axis.invert_xaxis()

        draw_base_and_levels(axes[0], results)
        axes[0].set_ylim(0, 100)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        return figure

    def data(self, results: Results) -> tuple[str, Table]:
        """The table that is printed."""
        units = f"{results.quality} in percent"
        if self.milliseconds:
            units = f"time of one image in ms, {units}"
        return units, self.tables(results)["grouping"]

    def tables(self, results: Results) -> dict[str, Table]:
        """The best order of each number of steps, with time and accuracy."""
        rows = []
        for score in results.of("grouping"):
            row = [str(score.order), str(score.variant["steps"])]
            if self.milliseconds:
                row.append(f"{self.milliseconds[str(score.order)]:#.3g}")
            loss = "infinite" if score.loss is None else f"{score.loss:.4f}"
            rows.append([*row, f"{100 * score.quality:.2f}", loss])
        times = ["ms, 1 image"] if self.milliseconds else []
        return {"grouping": Table(["merged", "steps", *times, f"{results.quality} %", "loss"], rows)}
