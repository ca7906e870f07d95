"""The drawings that protocols can name as their figure."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from layershuffle.orders.protocols import Protocol
from layershuffle.results.estimates import summarise
from layershuffle.results.figures.drawing import (
    COLOURS,
    accuracy_panel,
    annotate,
    band,
    draw_levels,
    heat_map,
    panels,
)
from layershuffle.results.levels import reference_levels
from layershuffle.results.record import Results
from layershuffle.results.score import Score

MARKERS = "osD^vP*"

Line = dict[float | None, list[float]]
"""Accuracies in percent by a number in the variant. None stands for scores without a number."""


def lines(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy against the first number in the variant, a line for each value of the rest.

    Lines are means over orders and bands reach from the worst order to the best. Scores whose variant has no number are
    a level line; at least one has a number.
    """
    by_label, key = _by_line(protocols, results)
    present: set[float | None] = set()
    for line in by_label.values():
        present.update(line)
    numbers = sorted(number for number in present if number is not None)

    xlabel = protocols[0].xlabel or protocols[0].columns or key
    figure, axis = accuracy_panel(results, title, xlabel=xlabel)
    has_band = False
    for index, (label, line) in enumerate(by_label.items()):
        # Scores without a number have the same mean at every x: a level line.
        level = line.get(None)
        means = {}
        for x in numbers:
            accuracies = level or line.get(x)
            if accuracies:
                means[x] = summarise(accuracies)
        colour = COLOURS[index % len(COLOURS)]
        marker = MARKERS[index % len(MARKERS)]
        band(axis, means, colour, marker=marker, markersize=4, label=label)
        has_band = has_band or any(summary.min < summary.max for summary in means.values())
    axis.set_xticks(numbers)
    if protocols[0].descending:
        axis.invert_xaxis()
    # The bands have the colours of their lines, so the legend explains all of them by a grey one that isn't drawn.
    if has_band:
        axis.fill_between([], [], color="grey", alpha=0.3, linewidth=0, label="worst to best order")
    figure.legend(loc="outside right center", frameon=False)
    return figure


def _by_line(protocols: Sequence[Protocol], results: Results) -> tuple[dict[str, Line], str]:
    """The accuracies of each line by the line's label, and what the variants call the number that is the x axis."""
    by_label: dict[str, Line] = {}
    keys = []
    for protocol in protocols:
        for score in results.of(protocol.name):
            # The first number is the x coordinate, and what else is in the variant names the line.
            key, number = next(_numbers(score), ("", None))
            rest = ", ".join(str(value) for name, value in score.variant.items() if name != key)
            line = by_label.setdefault(rest or protocol.label or protocol.name, {})
            line.setdefault(number, []).append(100 * score.quality)
            keys.append(key)
    # The key of scores without a number is empty and comes before all others, so that the last one is a name.
    return by_label, max(keys)


def bars(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Mean top-1 accuracy of each variant, with a line from the worst order to the best, beside the base order's."""
    names = {"sequential", *(protocol.name for protocol in protocols)}
    groups = {group: scores for group, scores in results.groups().items() if group[0] in names}
    figure, (axis,) = panels(1, 7.6, 1.6 + 0.42 * len(groups), title, grid=False)
    labels = []
    for row, (group, scores) in enumerate(groups.items()):
        name, *variant = group
        summary = summarise(100 * score.quality for score in scores)
        colour = COLOURS[0] if name == "sequential" else COLOURS[1]
        axis.barh(row, summary.mean, color=colour, alpha=0.85)
        if summary.n > 1:
            axis.plot([summary.min, summary.max], [row, row], color="black", linewidth=0.8)
        annotate(axis, f"{summary.mean:.1f}", summary.max, row, (3, 0), ha="left", va="center")
        label = ", ".join(map(str, variant)) or name
        if label == "sequential":
            label = "base order"
        labels.append(textwrap.shorten(label, 44))
    axis.set_yticks(range(len(groups)), labels, fontsize=7)
    # Labels such as "20%" don't say of what. Those of several protocols would be of different things.
    if len(protocols) == 1:
        axis.set_ylabel(protocols[0].xlabel)
    draw_levels(axis, reference_levels(results), is_upright=True)
    axis.set(xlabel=f"{results.quality_in_words}, %", xlim=(0, 105))
    axis.invert_yaxis()
    figure.legend(loc="outside right center", frameon=False)
    return figure


def scatter(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy of every order against the first number in the variant, with the best, the mean and the worst."""
    by_number: dict[float, list[float]] = {}
    for score in results.of(*(protocol.name for protocol in protocols)):
        _, number = next(_numbers(score))
        by_number.setdefault(number, []).append(100 * score.quality)

    figure, axis = accuracy_panel(results, title, xlabel=protocols[0].xlabel or protocols[0].columns)
    for number, values in by_number.items():
        # Side by side within the number's column, so that equal ones don't hide each other.
        xs = []
        for index in range(len(values)):
            from_middle = (index + 0.5) / len(values) - 0.5
            xs.append(number + 0.5 * from_middle)
        axis.scatter(xs, values, s=3, color=COLOURS[0], alpha=0.35, linewidth=0)
    for name, statistic, style in (("best choice", max, "^-"), ("mean", fmean, ".-"), ("worst choice", min, "v-")):
        points = [statistic(values) for values in by_number.values()]
        axis.plot(list(by_number), points, style, color=COLOURS[1], markersize=4, linewidth=1, label=name)
    axis.set_xticks(list(by_number))
    figure.legend(loc="outside right center", frameon=False)
    return figure


def matrix(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy by the first two numbers in the variant. A pair that has no score gets its mirror image's."""
    (protocol,) = protocols
    by_pair: dict[tuple[float, float], list[float]] = {}
    for score in results.of(protocol.name):
        (_, row), (_, column), *_ = _numbers(score)
        by_pair.setdefault((row, column), []).append(100 * score.quality)

    present: set[float] = set()
    for pair in by_pair:
        present.update(pair)
    ticks = sorted(present)
    values = np.full((len(ticks), len(ticks)), np.nan)
    for i, row in enumerate(ticks):
        for j, column in enumerate(ticks):
            # Exchanging two layers is the same whichever is named first, so that protocols list each pair once.
            accuracies = by_pair.get((row, column)) or by_pair.get((column, row))
            if accuracies:
                values[i, j] = fmean(accuracies)
    label = results.quality_in_words
    if protocol.label:
        label += f" with {protocol.label}"
    return heat_map(values, ticks, title, f"{label}, %", protocol.xlabel, ".0f")


def choices(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy when images choose their order, at best, and in each order, with how many chose it."""
    scores = results.of(*(protocol.name for protocol in protocols))
    figure, axis = accuracy_panel(results, title)
    # The first two scores are of images that differ in their orders, see ``instancewise``; the others have one order.
    names = ["each image's\nchoice", "each image's\nbest (oracle)"]
    for index, score in enumerate(scores):
        text = f"{100 * score.quality:.1f}"
        if score.chosen is not None:
            text += f"\n{100 * score.chosen:.0f}% chose it"
        colour = COLOURS[0] if score.order is None else COLOURS[1]
        axis.bar(index, 100 * score.quality, color=colour, alpha=0.85)
        annotate(axis, text, index, 100 * score.quality)
        if score.order is not None:
            names.append(textwrap.fill(score.order, 16))
    axis.set_xticks(range(len(scores)), names, fontsize=7)
    # Above 100% there is room for the texts on high bars.
    axis.set(ylim=(0, 112), yticks=range(0, 101, 20))
    figure.legend(loc="outside right center", frameon=False)
    return figure


DRAWINGS: dict[str, Callable[[Sequence[Protocol], Results, str], Figure]] = {
    "lines": lines,
    "bars": bars,
    "scatter": scatter,
    "matrix": matrix,
    "choices": choices,
}
"""What a protocol can name as its figure."""


def has_number(score: Score) -> bool:
    """Whether the variant has a number, by which ``lines`` can draw the score."""
    return next(_numbers(score), None) is not None


def _numbers(score: Score) -> Iterator[tuple[str, Any]]:
    """The entries of the variant that are numbers."""
    for key, value in score.variant.items():
        if isinstance(value, (int, float)):
            yield key, value
