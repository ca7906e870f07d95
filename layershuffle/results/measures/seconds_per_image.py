"""How long an image takes, by the number of layers that run."""

from dataclasses import dataclass
from typing import Any, ClassVar

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layershuffle import typed_json
from layershuffle.errors import UserError
from layershuffle.plurals import form
from layershuffle.results.figures.drawing import (
    COLOURS,
    STRATEGIES,
    band,
    by_kept,
    draw_base_and_levels,
    legend_below,
    panels,
    strategies_of,
)
from layershuffle.results.measures.early_exit import EarlyExits
from layershuffle.results.record import Measure, Results, register, scores_of
from layershuffle.results.table import Table


@register
@dataclass(frozen=True)
class SecondsPerImage(Measure):
    """How long an image takes.

    Attributes:
        seconds: the time by the number of layers that run.
    """

    name: ClassVar[str] = "seconds_per_image"
    picture: ClassVar[str] = "depth"
    caption: ClassVar[str] = (
        "Accuracy against layers run, and against time. Bands reach from the worst choice of layers to the best."
    )
    protocols: ClassVar[tuple[str, ...]] = ("pruned",)
    seconds: dict[int, float]

    @classmethod
    def from_json(cls, content: Any) -> "SecondsPerImage":
        """Read the times, which stand in the file by themselves."""
        return cls(typed_json.read(dict[int, float], content, cls.name))

    def to_json(self) -> dict[str, float]:
        """The times by themselves."""
        return dict(typed_json.write(self.seconds))

    def check(self, results: Results) -> None:
        """Raise a UserError if a number of layers that was scored has no time."""
        for score in results.of("pruned"):
            kept = score.variant.get("kept")
            if kept not in self.seconds:
                raise UserError(f"seconds_per_image has no time for {kept} {form(kept, 'layer')}")

    def caption_for(self, results: Results) -> str:
        """The caption, with a warning if early exit was measured."""
        if results.measure(EarlyExits):
            return f"{self.caption} Choose early exit's threshold on other images than these."
        return self.caption

    def figure(self, results: Results, title: str = "") -> Figure:
        """Two panels: accuracy against layers, and against milliseconds."""
        strategies = strategies_of([results])
        figure, (by_layers, by_time) = panels(2, 10.5, 4.4, title)
        # The strategies differ in accuracy alone: the time depends on how many layers run, and not on which ones.
        for strategy, colour in zip(strategies, COLOURS):
            points = by_kept(results, strategy, "original")
            label = STRATEGIES.get(strategy, strategy).removesuffix(" kept")
            band(by_layers, points, colour, marker=".", label=label)
            in_milliseconds = {1000 * self.seconds[kept]: summary for kept, summary in points.items()}
            band(by_time, in_milliseconds, colour, marker=".")
        # Early exit stops each image elsewhere, so it has no time of a batch, and takes the colours that are left.
        _draw_exits(by_layers, results, COLOURS[len(strategies) :])

        draw_base_and_levels(by_layers, results)
        draw_base_and_levels(by_time, results, label=False)
        by_layers.set(xlabel="layers run (with early exit: mean)", xticks=sorted(self.seconds))
        by_layers.set(ylabel=f"{results.quality_in_words}, %", ylim=(0, 100))
        by_time.set(xlabel=f"ms per image, batches of {results.evaluation.batch_size}", xlim=(0, None))
        legend_below(figure)
        return figure

    def data(self, results: Results) -> tuple[str, Table]:
        """All scores, and early exit's."""
        table = scores_of(results)
        early_exits = results.measure(EarlyExits)
        if early_exits:
            # Where all images stop together, early exit is the protocol "pruned", whose scores are there already.
            for stop, layers, top1 in early_exits.own_stops():
                table.rows.append(["early exit", f"{stop}, {layers} layers", "", top1])
        return f"{results.quality} in percent", table


def _draw_exits(axis: Axes, results: Results, colours: list[str]) -> None:
    """Draw a line for each rule of early exit, if that was measured."""
    early_exits = results.measure(EarlyExits)
    if early_exits is None:
        return
    by_rule: dict[str, list[tuple[float, float]]] = {}
    for stop in early_exits.exits:
        by_rule.setdefault(stop.rule, []).append((stop.layers, 100 * stop.top1))
    for (rule, points), colour in zip(by_rule.items(), colours):
        layers, accuracies = zip(*points)
        label = f"early exit by {rule}"
        axis.plot(layers, accuracies, "x--", color=colour, markersize=4, linewidth=1, label=label)
