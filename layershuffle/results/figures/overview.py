"""The overview: one or more models in their base order, in arbitrary orders, and with layers left out."""

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
    level_label,
    level_styles,
    panels,
    strategies_of,
)
from layershuffle.results.levels import reference_levels
from layershuffle.results.record import Results
from layershuffle.results.score import Score

SEQUENCES: dict[str, dict[str, Any]] = {
    "original": {"linestyle": "-", "marker": "o", "markersize": 4},
    "random": {"linestyle": "--", "marker": "s", "markersize": 5, "markerfacecolor": "white"},
}
"""The styles of the sequences in which the layers that are kept run. The markers tell them apart where no line does."""
FULL_DEPTH = {"sequential": "sequential\norder", "arbitrary": "arbitrary\norders"}
"""The protocols that run all layers one after the other, and what the picture calls them."""
WIDEST_BAR = 0.4
"""The width of a bar, where neighbouring columns of bars are 1 apart, of few models; of more, bars share 0.8."""
SIDEWAYS = 0.06
"""How far from their model's place the points of the two sequences stand where there is a single number of layers."""


def overview(several: Sequence[Results], title: str = "") -> Figure:
    """Top-1 accuracy of one or more models at full depth and, if pruned orders were scored, by layers kept.

    Full depth: a bar for the sequential order and one for arbitrary orders, with a dot for each order; that bar is the
    mean of the orders that ran over all images. Pruned: one panel a strategy; lines are means over the orders, bands
    reach from the worst order to the best. Another panel shows the protocol "grouped", if it was scored. What nobody
    scored has no place in the picture.
    """
    columns = [protocol for protocol in FULL_DEPTH if any(results.of(protocol) for results in several)]
    strategies = strategies_of(several)
    has_groups = any(results.of("grouped") for results in several)
    # Results without any of these scores get an empty panel: a figure needs one.
    panel_count = max(1, bool(columns) + len(strategies) + has_groups)
    figure, axes = panels(panel_count, max(6.4, 1 + 3.2 * panel_count), 4.4, title)
    bar_width = min(WIDEST_BAR, 0.8 / len(several))
    levels: dict[str, float] = {}
    # Model by model, each of which goes through all panels.
    for index, results in enumerate(several):
        remaining = iter(axes)
        colour = COLOURS[index % len(COLOURS)]
        # How far to the side of its tick a model's bar or point stands, so that those of all are centred on it.
        shift = (index - (len(several) - 1) / 2) * bar_width
        if columns:
            _draw_full_depth(next(remaining), results, columns, colour, shift, bar_width)
        for strategy in strategies:
            _draw_pruned(next(remaining), results, strategy, colour, shift)
        if has_groups:
            _draw_groups(next(remaining), results, colour)
        levels.update(reference_levels(results))
    for axis in axes:
        draw_levels(axis, levels)

    axes[0].set(ylabel=f"{several[0].quality_in_words}, %", ylim=(0, 100))
    handles = _legend(several, levels, with_sequences=bool(strategies) or has_groups)
    legend_below(figure, handles)
    return figure


def _draw_full_depth(
    axis: Axes, results: Results, columns: Sequence[str], colour: str, shift: float, width: float
) -> None:
    """Draw one model's bars and dots; ``shift`` is how far the middle of a bar is from its tick."""
    for column, protocol in enumerate(columns):
        scores = results.of(protocol)
        if not scores:
            continue
        x = column + shift
        # The bar is the mean of the fixed orders. A score without an order, which was new in every batch, counts only
        # where there is nothing else.
        fixed = _of_one_order(scores)
        counted = fixed or scores
        mean = fmean(100 * score.quality for score in counted)
        axis.bar(x, mean, 0.92 * width, color=colour, alpha=0.85)
        annotate(axis, f"{mean:.1f}", x, 100 * max(score.quality for score in counted))
        if len(fixed) > 1:
            # One dot beside the other, so that equal accuracies don't hide each other.
            dots = []
            for place in range(len(fixed)):
                from_middle = place / (len(fixed) - 1) - 0.5
                dots.append(x + 0.6 * width * from_middle)
            accuracies = [100 * score.quality for score in fixed]
            axis.scatter(dots, accuracies, s=4, color="black", alpha=0.5, zorder=3)
    axis.set(title="all layers")
    axis.set_xticks(range(len(columns)), [FULL_DEPTH[protocol] for protocol in columns])
    # A single column stands in the middle, and its bars are as wide as those of two columns.
    middle = (len(columns) - 1) / 2
    axis.set_xlim(middle - 1, middle + 1)


def _of_one_order(scores: Sequence[Score]) -> list[Score]:
    """The scores of a single order each, and not those for which every batch ran in a new one."""
    return [score for score in scores if score.order is not None]


def _draw_pruned(axis: Axes, results: Results, strategy: str, colour: str, shift: float) -> None:
    """Draw one model's lines; ``shift`` moves its points where there is a single number of layers."""
    by_sequence = {sequence: by_kept(results, strategy, sequence) for sequence in SEQUENCES}
    present: set[int] = set()
    for points in by_sequence.values():
        present.update(points)
    depths = sorted(present)
    is_single = len(depths) == 1
    for (sequence, points), sideways in zip(by_sequence.items(), (-SIDEWAYS, SIDEWAYS)):
        if not is_single:
            band(axis, points, colour, **SEQUENCES[sequence])
            continue
        # Without lines, points of the same number of layers stand side by side, with their values.
        placed = {kept + shift + sideways: summary for kept, summary in points.items()}
        band(axis, placed, colour, **SEQUENCES[sequence])
        for x, summary in placed.items():
            annotate(axis, f"{summary.mean:.1f}", x, summary.max)
    axis.set(title=STRATEGIES.get(strategy, strategy), xlabel="layers kept")
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
    axis.set(title="all layers, side by side", xlabel="steps")
    # Fewer steps, to the right, take less time.
    axis.xaxis.set_inverted(True)


def _legend(several: Sequence[Results], levels: Mapping[str, float], with_sequences: bool) -> list[Artist]:
    """What the legend shows: the models, and what dots, lines, bands and levels stand for."""
    # By hand: a line has the colour of its model and the style of its sequence, and the legend explains each by itself.
    handles: list[Artist] = []
    for index, results in enumerate(several):
        handles.append(Line2D([], [], color=COLOURS[index % len(COLOURS)], lw=4, label=results.label))
    if any(len(_of_one_order(results.of("arbitrary"))) > 1 for results in several):
        handles.append(Line2D([], [], color="black", marker=".", linestyle="", alpha=0.5, label="one order"))
    if with_sequences:
        for sequence, style in SEQUENCES.items():
            handles.append(Line2D([], [], color="grey", label=f"in {sequence} sequence", **style))
        handles.append(Patch(color="grey", alpha=0.3, label="worst to best order"))
    for name, style in level_styles(levels).items():
        handles.append(Line2D([], [], label=level_label(name, levels[name]), **style))
    return handles
