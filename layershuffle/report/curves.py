"""The report's curves, each of the points in a table that goes with it."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layershuffle.report.setups import SetupResults
from layershuffle.results import Estimate, Score, Summary, summarise
from layershuffle.results.figures import COLOURS, band, draw_levels, legend_below, panels

ACCURACY = "top-1 accuracy"
"""What the figures show unless they are told otherwise."""
SEQUENCES = {
    "original": "in original sequence",
    "random": "in random sequence",
    "per batch": "in random sequence, new in each batch",
}


@dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        panel: the title of the panel that the curve is in.
        method: whose curve it is.
        number: the x coordinate, such as the number of layers kept.
        accuracy: the y coordinate, in percent: mean and spread over the method's seeds.
    """

    panel: str
    method: str
    number: int
    accuracy: Summary


def pruned(setup: SetupResults) -> list[Point]:
    """Figures 1b and 1c of arXiv 2407.04513: accuracy by the number of layers kept, in every sequence.

    Of models that were trained with all layers, random ones are kept, and a model's orders are averaged. Models that
    were refined at a reduced depth are shown at that depth, in the sequence of their training and in random ones.
    """
    points = []
    for sequence, panel in SEQUENCES.items():
        # Models that were trained with all layers: random ones are kept.
        for method in setup.main_methods:
            points += _points(setup, panel, method, "pruned", strategy="random", sequence=sequence)

        # Models that were refined at a reduced depth: a curve of one model for each depth, under a common name.
        for method in setup.methods:
            reduced = re.fullmatch(r"reduced-depth-(\d+)(.*)", method)  # such as reduced-depth-6-predict
            if not reduced:
                continue
            # Each model was evaluated at several depths, but the figure shows only the one that it was refined for.
            depth = int(reduced[1])
            for point in _points(setup, panel, method, "pruned", strategy="first", sequence=sequence):
                if point.number == depth:
                    points.append(replace(point, method=f"reduced-depth{reduced[2]}"))
    return points


def _mean_percent(scores: Sequence[Score]) -> float:
    """The mean top-1 accuracy of some orders, in percent."""
    return 100 * fmean(score.quality for score in scores)


def all_subsets(setup: SetupResults) -> list[Point]:
    """The exact mean over all choices of k layers, for every k, in original sequence."""
    points = []
    for method in setup.methods:
        points += _points(setup, "all choices of k layers", method, "landscape")
    return points


def side_by_side(setup: SetupResults, protocol: str, key: str) -> list[Point]:
    """Accuracy by the number of steps, or of layers in flight, in a panel for each kind of order.

    Args:
        setup: the results.
        protocol: one whose variants have two values: a number, and under "layers" which layers run.
        key: what the number is called.
    """
    # A dict keeps the sequence in which the protocol lists its kinds of orders, and a set wouldn't.
    kinds: dict[str, None] = {}
    for method in setup.main_methods:
        for run in setup.runs_of(method):
            for score in run.scores(protocol):
                kinds[score.variant["layers"]] = None
    points = []
    for kind in kinds:
        for method in setup.main_methods:
            points += _points(setup, kind, method, protocol, key, layers=kind)
    return points


def _points(
    setup: SetupResults, panel: str, method: str, protocol: str, key: str = "kept", **variant: Any
) -> list[Point]:
    """A point for each number, such as of layers kept: the mean over a method's seeds of the means over orders."""
    # Not every seed need have been evaluated with the same numbers.
    numbers: set[int] = set()
    for run in setup.runs_of(method):
        numbers.update(score.variant[key] for score in run.scores(protocol, **variant))
    points = []
    for number in sorted(numbers):
        of_seeds = setup.scores_by_seed(method, protocol, **{key: number}, **variant)
        # Every model has the same weight, however many orders it ran.
        means = [_mean_percent(scores) for scores in of_seeds]
        points.append(Point(panel, method, number, summarise(means)))
    return points


@dataclass(frozen=True)
class Bar:
    """A method's accuracy in sequential or arbitrary order.

    Attributes:
        order: "sequential order" or "arbitrary order".
        method: whose accuracy it is.
        accuracy: 0 to 1.
    """

    order: str
    method: str
    accuracy: Estimate


def bars(accuracies: Sequence[Bar], levels: Mapping[str, float], quality: str = ACCURACY) -> Figure:
    """Bars for each method, one for each kind of order, with 95% intervals.

    Args:
        accuracies: what the bars show.
        levels: accuracies to compare with, in percent by name, which are drawn as lines.
        quality: what the bars show, in words.
    """
    methods = list(dict.fromkeys(bar.method for bar in accuracies))
    orders = list(dict.fromkeys(bar.order for bar in accuracies))
    # In inches: wide enough for the names of all methods.
    figure_width = max(7.2, 2 + 1.25 * len(methods))
    figure, (axis,) = panels(1, figure_width, 4.2)
    # The bars of a method stand side by side, and together they are centred on its tick.
    width = 0.8 / len(orders)
    for index, order in enumerate(orders):
        shift = (index - (len(orders) - 1) / 2) * width
        of_order = [bar for bar in accuracies if bar.order == order]
        xs = [methods.index(bar.method) + shift for bar in of_order]
        _draw_bars(axis, xs, of_order, width, COLOURS[index])
    draw_levels(axis, levels)
    axis.set(ylabel=f"{quality}, %", ylim=(0, 105), yticks=range(0, 101, 20))
    axis.set_xticks(range(len(methods)), [textwrap.fill(method, 14) for method in methods])
    legend_below(figure)
    return figure


def _draw_bars(axis: Axes, xs: Sequence[float], of_order: Sequence[Bar], width: float, colour: str) -> None:
    """Draw the bars of one kind of order, with their intervals and means."""
    means = []
    low = []
    high = []
    for bar in of_order:
        mean = 100 * bar.accuracy.mean
        # An unknown interval has no height.
        half = 100 * (bar.accuracy.ci95 or 0)
        # An interval may reach below 0 or above 100, where there is no accuracy: it ends there.
        means.append(mean)
        low.append(min(mean, half))
        high.append(min(100 - mean, half))
    axis.bar(xs, means, 0.92 * width, color=colour, alpha=0.85, label=of_order[0].order)
    axis.errorbar(xs, means, (low, high), fmt="none", ecolor="black", elinewidth=1, capsize=3)
    for x, mean, above in zip(xs, means, high):
        axis.annotate(f"{mean:.1f}", (x, mean + above), (0, 3), textcoords="offset points", ha="center", fontsize=8)


def curves(
    points: Sequence[Point],
    levels: Mapping[str, float],
    xlabel: str = "layers kept",
    descending: bool = False,
    quality: str = ACCURACY,
) -> Figure:
    """A panel for each kind of orders, a line for each method; bands are one sample standard deviation over the seeds.

    Args:
        points: those of all lines.
        levels: accuracies to compare with, in percent by name, which are drawn as level lines.
        xlabel: what the number of a point is called.
        descending: whether the numbers fall from left to right.
        quality: what the lines show, in words.
    """
    names = list(dict.fromkeys(point.panel for point in points))
    methods = list(dict.fromkeys(point.method for point in points))
    numbers = sorted({point.number for point in points})
    figure, axes = panels(len(names), 1.2 + 3.8 * len(names), 4.2)
    for axis, name in zip(axes, names):
        for index, method in enumerate(methods):
            line = [point for point in points if (point.panel, point.method) == (name, method)]
            colour = COLOURS[index % len(COLOURS)]
            band(axis, _deviations(line), colour, 0.18, marker="o", markersize=3.5, label=method)
        draw_levels(axis, levels)
        axis.set(title=name, xlabel=xlabel, ylim=(0, 100), xticks=numbers)
        axis.xaxis.set_inverted(descending)
    axes[0].set_ylabel(f"{quality}, %")
    # All panels have the same lines.
    handles, _ = axes[0].get_legend_handles_labels()
    legend_below(figure, handles)
    return figure


def _deviations(line: Sequence[Point]) -> dict[int, Summary]:
    """The accuracies by number, with one standard deviation below and above the mean as extremes."""
    spread = {}
    for point in sorted(line, key=lambda point: point.number):
        accuracy = point.accuracy
        deviation = accuracy.std or 0
        spread[point.number] = replace(accuracy, min=accuracy.mean - deviation, max=accuracy.mean + deviation)
    return spread
