"""The overview: one or more models in their base order, in arbitrary orders, and with layers left out."""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from layershuffle.results.figures.drawing import (
    COLOURS,
    STRATEGIES,
    annotate,
    band,
    by_kept,
    by_steps,
    draw_levels,
    legend_below,
    level_styles,
    panels,
    strategies_of,
)
from layershuffle.results.levels import reference_levels
from layershuffle.results.record import Results

SEQUENCES: dict[str, dict[str, Any]] = {
    "original": {"linestyle": "-", "marker": "o", "markersize": 4},
    "random": {"linestyle": "--", "marker": "s", "markersize": 5, "markerfacecolor": "white"},
}
"""The styles of the sequences in which the layers that are kept run. The markers tell them apart where no line does."""
SIDEWAYS = 0.06
"""How far from their model's place the points of the two sequences stand where there is a single number of layers."""


def overview(several: Sequence[Results], title: str = "") -> Figure:
    """Top-1 accuracy of one or more models at full depth and, if pruned orders were scored, by layers kept.

    Full depth: a bar for the sequential order and one for arbitrary orders, with a dot for each order; that bar is the
    mean of the orders that ran over all images. Pruned: one panel a strategy; lines are means over the orders, bands
    reach from the worst order to the best. Another panel shows the protocol "grouped", if it was scored.
    """
    strategies = strategies_of(several)
    has_groups = any(results.of("grouped") for results in several)
    panel_count = len(strategies) + has_groups  # beside the panel of all layers
    figure, (full_depth, *axes) = panels(1 + panel_count, max(6.4, 4.2 + 3.2 * panel_count), 4.4, title)
    # The bars of all models stand side by side and together are 0.8 wide, centred on their tick.
    bar_width = 0.8 / len(several)
    levels: dict[str, float] = {}
    for index, results in enumerate(several):
        colour = COLOURS[index % len(COLOURS)]
        _draw_full_depth(full_depth, results, colour, index * bar_width - 0.4, bar_width)
        for axis, strategy in zip(axes, strategies):
            _draw_pruned(axis, results, strategy, colour, (index - (len(several) - 1) / 2) * bar_width)
        if has_groups:
            _draw_groups(axes[-1], results, colour)
        levels.update(reference_levels(results))
    for axis in (full_depth, *axes):
        draw_levels(axis, levels)

    full_depth.set(title="all layers", ylabel="top-1 accuracy, %", ylim=(0, 100))
    full_depth.set_xticks([0, 1], ["sequential\norder", "arbitrary\norders"])
    for axis, strategy in zip(axes, strategies):
        axis.set(title=STRATEGIES.get(strategy, strategy), xlabel="layers kept")

    if has_groups:
        # Fewer steps, to the right, take less time.
        axes[-1].set(title="all layers, side by side", xlabel="steps")
        axes[-1].invert_xaxis()

    handles = _legend(several, levels, with_sequences=bool(axes))
    legend_below(figure, handles)
    return figure


def _draw_full_depth(axis: Axes, results: Results, colour: str, left: float, width: float) -> None:
    """Draw one model's bars and dots; ``left`` is where the bar begins, seen from its tick."""
    for column, protocol in enumerate(("sequential", "arbitrary")):
        scores = results.of(protocol)
        if not scores:
            continue
        x = column + left + width / 2
        # The bar is the mean of the fixed orders. A score without an order is of a new order in every batch; it counts
        # only where there is nothing else.
        fixed = [score for score in scores if score.order is not None] or scores
        mean = fmean(100 * score.top1 for score in fixed)
        axis.bar(x, mean, 0.92 * width, color=colour, alpha=0.85)
        annotate(axis, f"{mean:.1f}", x, 100 * max(score.top1 for score in scores))
        if len(scores) > 1:
            # One dot beside the other, so that equal accuracies don't hide each other.
            spread = [x + 0.6 * width * (place / (len(scores) - 1) - 0.5) for place in range(len(scores))]
            accuracies = [100 * score.top1 for score in scores]
            axis.scatter(spread, accuracies, s=4, color="black", alpha=0.5, zorder=3)


def _draw_pruned(axis: Axes, results: Results, strategy: str, colour: str, shift: float) -> None:
    """Draw one model's lines; ``shift`` moves its points where there is a single number of layers."""
    by_sequence = {sequence: by_kept(results, strategy, sequence) for sequence in SEQUENCES}
    depths = sorted(set(itertools.chain(*by_sequence.values())))
    is_single = len(depths) == 1
    for (sequence, points), sideways in zip(by_sequence.items(), (-SIDEWAYS, SIDEWAYS)):
        # Without lines, points of the same number of layers stand side by side, with their values.
        placed = {kept + shift + sideways: summary for kept, summary in points.items()} if is_single else points
        band(axis, placed, colour, **SEQUENCES[sequence])
        if is_single:
            for x, summary in placed.items():
                annotate(axis, f"{summary.mean:.1f}", x, summary.max)
    axis.set_xticks(depths)
    if is_single:
        axis.set_xlim(depths[0] - 0.5, depths[0] + 0.5)


def _draw_groups(axis: Axes, results: Results, colour: str) -> None:
    """Draw one model's accuracy against the number of steps, with layers side by side."""
    for sequence, layers in (("original", "in sequence"), ("random", "random")):
        points = by_steps(results, layers)
        band(axis, points, colour, **SEQUENCES[sequence])
        if points:
            axis.set_xticks(list(points))


def _legend(several: Sequence[Results], levels: Mapping[str, float], with_sequences: bool) -> list[Artist]:
    handles: list[Artist] = []
    for index, results in enumerate(several):
        handles.append(Line2D([], [], color=COLOURS[index % len(COLOURS)], lw=4, label=results.label))
    if any(len(results.of("arbitrary")) > 1 for results in several):
        handles.append(Line2D([], [], color="black", marker=".", linestyle="", alpha=0.5, label="one order"))
    if with_sequences:
        for sequence, style in SEQUENCES.items():
            handles.append(Line2D([], [], color="grey", label=f"in {sequence} sequence", **style))
        handles.append(Patch(color="grey", alpha=0.3, label="worst to best order"))
    for name, style in level_styles(levels).items():
        handles.append(Line2D([], [], label=name, **style))
    return handles
