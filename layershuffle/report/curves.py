"""The report's curves, each of the points in a table that goes with it."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from layershuffle.report.collect import SetupResults
from layershuffle.results import Estimate, Summary, summarise
from layershuffle.results.figures import COLOURS, band, draw_levels, panels

SEQUENCES = {
    "original": "in original sequence",
    "random": "in random sequence",
    "per batch": "in random sequence, new in each batch",
}


@dataclass(frozen=True)
class Point:
    """One point of a curve: accuracy in percent, mean and spread over the seeds of a method."""

    panel: str
    method: str
    kept: int
    accuracy: Summary


def pruned(setup: SetupResults) -> list[Point]:
    """Figures 1b and 1c of arXiv 2407.04513: accuracy by the number of layers kept, in every sequence.

    Of models that were trained with all layers, random ones are kept, and a model's draws are averaged. Models that
    were refined at a reduced depth are shown at that depth, in the sequence of their training and in random ones.
    """
    points = []
    for sequence, panel in SEQUENCES.items():
        for method in setup.samplers:
            points += _points(setup, panel, method, "pruned", strategy="random", sequence=sequence)
        for method in setup.methods:
            if match := re.fullmatch(r"reduced-depth-(\d+)(.*)", method):  # such as reduced-depth-6-predict
                found = _points(setup, panel, method, "pruned", strategy="first", sequence=sequence)
                its_depth, rest = int(match[1]), match[2]
                points += [replace(point, method=f"reduced-depth{rest}") for point in found if point.kept == its_depth]
    return points


def all_subsets(setup: SetupResults) -> list[Point]:
    """The exact mean over all choices of k layers, for every k, in original sequence."""
    panel = "all choices of k layers"
    return [point for method in setup.methods for point in _points(setup, panel, method, "landscape")]


def _points(setup: SetupResults, panel: str, method: str, protocol: str, **variant: Any) -> list[Point]:
    depths = {score.variant["kept"] for run in setup.of(method) for score in run.scores(protocol, **variant)}
    found = {kept: setup.over_seeds(method, protocol, kept=kept, **variant) for kept in sorted(depths)}
    means = {kept: [100 * fmean(score.top1 for score in scores) for scores in seeds] for kept, seeds in found.items()}
    return [Point(panel, method, kept, summarise(values)) for kept, values in means.items()]


@dataclass(frozen=True)
class Bar:
    """A method's accuracy in sequential or arbitrary order."""

    order: str
    method: str
    accuracy: Estimate


def bars(found: Sequence[Bar], levels: Mapping[str, float]) -> Figure:
    """Bars for each method, one for each kind of order, with 95% intervals, and ``levels`` in percent as lines."""
    methods = list(dict.fromkeys(bar.method for bar in found))
    orders = list(dict.fromkeys(bar.order for bar in found))
    figure, (axis,) = panels(1, max(7.2, 2 + 1.25 * len(methods)), 4.2)
    width = 0.8 / len(orders)
    for index, order in enumerate(orders):
        of_order = [bar for bar in found if bar.order == order]
        xs = [methods.index(bar.method) + (index - (len(orders) - 1) / 2) * width for bar in of_order]
        means = [100 * bar.accuracy.mean for bar in of_order]
        errors = [100 * (bar.accuracy.ci95 or 0) for bar in of_order]
        # The intervals are below 0 and above 100 at times, where no accuracy is.
        low = [min(mean, error) for mean, error in zip(means, errors)]
        high = [min(100 - mean, error) for mean, error in zip(means, errors)]
        axis.bar(xs, means, 0.92 * width, color=COLOURS[index], alpha=0.85, label=order)
        axis.errorbar(xs, means, (low, high), fmt="none", ecolor="black", elinewidth=1, capsize=3)
        for x, mean, above in zip(xs, means, high):
            axis.annotate(f"{mean:.1f}", (x, mean + above), (0, 3), textcoords="offset points", ha="center", fontsize=8)
    draw_levels(axis, levels)
    axis.set(ylabel="top-1 accuracy, %", ylim=(0, 105), yticks=range(0, 101, 20))
    axis.set_xticks(range(len(methods)), [textwrap.fill(method, 14) for method in methods])
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def curves(points: Sequence[Point], levels: Mapping[str, float]) -> Figure:
    """A panel for each sequence, a line for each method; bands are one sample standard deviation over the seeds."""
    names = list(dict.fromkeys(point.panel for point in points))
    methods = list(dict.fromkeys(point.method for point in points))
    figure, axes = panels(len(names), 1.2 + 3.8 * len(names), 4.2)
    for axis, name in zip(axes, names):
        for index, method in enumerate(methods):
            line = sorted((p.kept, p.accuracy) for p in points if (p.panel, p.method) == (name, method))
            spread = {k: replace(a, min=a.mean - (a.std or 0), max=a.mean + (a.std or 0)) for k, a in line}
            band(axis, spread, COLOURS[index % len(COLOURS)], 0.18, marker="o", markersize=3.5, label=method)
        draw_levels(axis, levels)
        axis.set(title=name, xlabel="layers kept", ylim=(0, 100), xticks=sorted({point.kept for point in points}))
    axes[0].set_ylabel("top-1 accuracy, %")
    columns = min(len(methods) + len(levels), 3 * len(names) - 1)  # a wider legend would be cut off
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return figure
