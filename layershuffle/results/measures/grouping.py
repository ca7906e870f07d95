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
        milliseconds: the time of one image by the order, whose groups are merged.
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
            if score.order not in self.milliseconds:
                raise UserError(f"grouping has no time for {score.order}")

    def figure(self, results: Results, title: str = "") -> Figure:
        """Two panels: accuracy against steps, and milliseconds against steps."""
        figure, (accuracy_axis, time_axis) = panels(2, 10.5, 4.4, title, shares_y=False)
        scores = results.of("grouping")
        steps = [score.variant["steps"] for score in scores]
        accuracies = [100 * score.top1 for score in scores]
        times = [self.milliseconds[str(score.order)] for score in scores]
        for axis, values in ((accuracy_axis, accuracies), (time_axis, times)):
            axis.plot(steps, values, "o-", color=COLOURS[0], markersize=4, label="best groups")
            for score, number, value in zip(scores, steps, values):
                if score.order == self.chosen:
                    axis.plot(number, value, "o", color=COLOURS[1], markersize=11, fillstyle="none", label="chosen")
            axis.set(xlabel="steps", xticks=steps)
            # Fewer steps, to the right, take less time.
            axis.invert_xaxis()

        draw_base_and_levels(accuracy_axis, results)
        accuracy_axis.set(ylabel="top-1 accuracy, %", ylim=(0, 100))
        time_axis.set(ylabel="ms, one image", ylim=(0, None))
        figure.legend(*accuracy_axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        return figure

    def data(self, results: Results) -> tuple[str, Table]:
        """The table that is printed."""
        return "time of one image in ms, top-1 in percent", self.tables(results)["grouping"]

    def tables(self, results: Results) -> dict[str, Table]:
        """The best order of each number of steps, with time and accuracy."""
        rows = []
        for score in results.of("grouping"):
            loss = "infinite" if score.loss is None else f"{score.loss:.4f}"
            time = f"{self.milliseconds[str(score.order)]:#.3g}"
            rows.append([str(score.order), str(score.variant["steps"]), time, f"{100 * score.top1:.2f}", loss])
        return {"grouping": Table(["merged", "steps", "ms, 1 image", "top-1 %", "loss"], rows)}
