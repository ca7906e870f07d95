"""What pictures share: colours, panels, bands, heat maps, the levels to compare with, and writing them to files."""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from layershuffle.files import write_whole
from layershuffle.results.estimates import Summary, summarise
from layershuffle.results.levels import reference_levels
from layershuffle.results.record import Results

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
"""Okabe and Ito's colours, which people with any colour vision can tell apart."""
LEVEL: dict[str, Any] = {"color": "#444444", "linewidth": 1.4, "linestyle": ":"}
"""The style of lines to compare with, such as chance."""
STRATEGIES = {"first": "first layers kept", "even": "evenly spaced layers kept", "random": "random layers kept"}
"""What pictures call the strategies of the protocol "pruned"."""


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``, whose suffix says in which format; raises UserError if it can't be written."""
    write_whole(path, rendered(figure, path.suffix[1:]))


def rendered(figure: Figure, form: str) -> bytes:
    """The content of a file of ``figure``: "png", or "svg", which is always the same for the same figure."""
    _take_names_as_they_are(figure)
    buffer = io.BytesIO()
    # By default an SVG holds the time at which it was written, and random ids, so that no two files were the same.
    metadata = {"Date": None} if form == "svg" else None
    with mpl.rc_context({"svg.hashsalt": "layershuffle"}):
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _take_names_as_they_are(figure: Figure) -> None:
    """Draw ``$``, ``^`` and backslashes in the names of files and classes as they stand, and not as mathematics."""
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            # Asking for the labels makes those that drawing would make.
            labels = [label.get_text() for label in axis.get_ticklabels(which="both")]
            # Drawing gives the labels their texts again, so that changing these, as below, would not last.
            if any(_has_bytes(label) for label in labels):
                major = [_drawable(label.get_text()) for label in axis.get_ticklabels()]
                axis.set_ticks(axis.get_ticklocs(), labels=major)
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        # The numbers of logarithmic axes are matplotlib's own mathematics.
        if "\\mathdefault" not in text.get_text():
            text.set_parse_math(False)
        if _has_bytes(text.get_text()):
            text.set_text(_drawable(text.get_text()))


def _has_bytes(text: str) -> bool:
    """Whether a text has characters that stand for bytes of a name that isn't UTF-8."""
    # Python reads such a byte of a file's name as one of these characters (PEP 383).
    return any("\udc80" <= character <= "\udcff" for character in text)


def _drawable(text: str) -> str:
    """The text with question marks for characters that can't be drawn."""
    return text.encode("utf-8", "replace").decode()


# --- Figures and axes ---------------------------------------------------------------------------------------


def panels(
    count: int, width: float, height: float, title: str | None = None, grid: bool = True, shares_y: bool = True
) -> tuple[Figure, Any]:
    """A figure and its panels, side by side.

    Args:
        count: how many panels there are.
        width: of the whole figure, in inches.
        height: of the whole figure, in inches.
        title: of the figure.
        grid: whether the panels have level lines in the background.
        shares_y: whether the panels share the y axis.

    Returns:
        The figure, and a list of its panels' axes.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, count, sharey=shares_y, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        if grid:
            axis.grid(True, axis="y", alpha=0.3)
        else:
            axis.grid(False, axis="y")
    if title is not None:
        figure.suptitle(title)
    return figure, axes


def legend_below(figure: Figure, handles: Sequence[Artist] | None = None) -> None:
    """Put a legend below the panels, in as few lines as the width of the picture allows.

    Args:
        figure: with a constrained layout.
        handles: what to name; by default all that has a label.
    """
    named: dict[str, Any] = {} if handles is None else {"handles": handles}
    # A first legend, which only tells how many entries there are.
    legend = figure.legend(loc="outside lower center", frameon=False, **named)
    entries = len(legend.get_texts())
    for lines in range(1, entries + 1):
        legend.remove()
        columns = math.ceil(entries / lines)
        legend = figure.legend(loc="outside lower center", frameon=False, ncols=columns, **named)
        # A legend knows its width without being drawn, which would lay out the whole figure each time.
        if legend.get_window_extent().width <= figure.bbox.width:
            break


def accuracy_panel(results: Results, title: str, **labels: str) -> tuple[Figure, Axes]:
    """A figure with one panel of accuracies in percent, with the levels to compare with.

    Args:
        results: whose base order and levels are drawn.
        title: of the figure.
        labels: other properties to set of the axes, such as ``xlabel``.
    """
    figure, (axis,) = panels(1, 7.6, 4.2, title)
    draw_base_and_levels(axis, results)
    axis.set(ylabel=f"{results.quality_in_words}, %", ylim=(0, 100), **labels)
    return figure, axis


def coloured_panels(
    several: Sequence[Results], height: float, label: str, names: Sequence[Any]
) -> tuple[Figure, list[Axes], ScalarMappable]:
    """A panel for each of the results, which share a bar of colours: one for each of ``names``.

    Args:
        several: the results.
        height: of the figure, in inches.
        label: of the bar of colours.
        names: what the bar calls the colours. The number n has the colour of the name with index n.

    Returns:
        The figure, the panels' axes, and what turns numbers into colours.
    """
    viridis = colormaps["viridis"]
    # Colour n is for the values from n - 0.5 to n + 0.5, so that the bar has a block and a tick for each name.
    colours = ScalarMappable(BoundaryNorm(np.arange(-0.5, len(names)), viridis.N), viridis)
    figure = Figure(figsize=(1.4 + 4.2 * len(several), height), layout="constrained")
    axes = list(figure.subplots(1, len(several), squeeze=False)[0])
    bar = figure.colorbar(colours, ax=axes, label=label, ticks=range(len(names)), shrink=0.8)
    bar.minorticks_off()
    bar.set_ticklabels(list(map(str, names)))
    return figure, axes, colours


# --- What is drawn into axes --------------------------------------------------------------------------------


def annotate(axis: Axes, text: str, x: float, y: float, offset: tuple[int, int] = (0, 4), **style: Any) -> None:
    """Write a small text beside a point, by default above it, with a white edge that keeps lines out of it."""
    style.setdefault("ha", "center")
    edge = [withStroke(linewidth=2.5, foreground="white")]
    axis.annotate(text, (x, y), offset, textcoords="offset points", fontsize=7, path_effects=edge, zorder=4, **style)


def band(axis: Axes, points: Mapping[Any, Summary], colour: str, alpha: float = 0.12, **style: Any) -> None:
    """Draw a line through the means by x, and a band from the smallest value to the largest."""
    xs = list(points)
    means = [summary.mean for summary in points.values()]
    low = [summary.min for summary in points.values()]
    high = [summary.max for summary in points.values()]
    axis.plot(xs, means, color=colour, **style)
    # Where each point is a single value, there is no band to fill.
    if low == high:
        return
    # A band over a single point would have no width.
    if len(points) == 1:
        axis.vlines(xs, low, high, color=colour, linewidth=1)
    else:
        axis.fill_between(xs, low, high, color=colour, alpha=alpha, linewidth=0)


def level_styles(levels: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """The style of the line of each level, by its name."""
    # Dotted lines and lines of dots and dashes take turns, so that two levels can be told apart.
    line_styles = itertools.cycle((":", "-."))
    return {name: {**LEVEL, "linestyle": line_style} for name, line_style in zip(levels, line_styles)}


def level_label(name: str, value: float) -> str:
    """What legends call a level line, with its accuracy in percent, which few lines let the reader see."""
    return f"{name} ({value:.3g}%)"


def draw_levels(axis: Axes, levels: Mapping[str, float], label: bool = True, is_upright: bool = False) -> None:
    """Draw accuracies to compare with, in percent, as level lines, or as upright ones where accuracy is the x axis."""
    draw_line = axis.axvline if is_upright else axis.axhline
    for name, style in level_styles(levels).items():
        in_legend = level_label(name, levels[name]) if label else None
        draw_line(levels[name], label=in_legend, **style)
    # Chance among many classes is almost 0: the axis, which would hide it, moves 4 points away.
    axis.spines["left" if is_upright else "bottom"].set_position(("outward", 4))


def draw_base_and_levels(axis: Axes, results: Results, label: bool = True) -> None:
    """Draw the accuracy of the model's base order, and those to compare with, as level lines."""
    in_legend = "base order" if label else None
    for score in results.of("sequential"):
        axis.axhline(100 * score.quality, color="black", linewidth=0.8, label=in_legend)
    draw_levels(axis, reference_levels(results), label)


def heat_map(values: np.ndarray, ticks: Sequence[float], title: str, label: str, axis_label: str, form: str) -> Figure:
    """A square of coloured cells with their values.

    Args:
        values: [size, size]; cells that are NaN stay empty.
        ticks: what rows and columns are called.
        title: of the picture.
        label: of the bar of colours.
        axis_label: of both axes.
        form: how to write a value, such as ".2f".
    """
    size = len(values)
    # In inches: room for each cell with its number, and for the texts beside the cells.
    width = max(4.8, 1.9 + 0.42 * size)
    height = max(4.0, 1.1 + 0.42 * size)
    figure = Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="viridis")
    axis.set(xlabel=axis_label, ylabel=axis_label)
    axis.set_xticks(range(size), map(str, ticks))
    axis.set_yticks(range(size), map(str, ticks))
    # viridis is dark for small values and light for large ones, and a number must stand out from its cell.
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, column in np.argwhere(np.isfinite(values)):
        value = values[row, column]
        colour = "white" if value <= middle else "black"
        text = format(value, form).replace("0.", ".")  # 0.85 becomes .85, which fits the cell.
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, label=label, shrink=0.8)
    figure.suptitle(title, fontsize="medium")
    return figure


# --- Numbers ------------------------------------------------------------------------------------------------


def by_kept(results: Results, strategy: str, sequence: str) -> dict[int, Summary]:
    """Top-1 accuracy in percent by the number of layers kept, over the orders of a strategy of protocol "pruned"."""
    grouped: dict[int, list[float]] = {}
    for score in results.of("pruned", strategy=strategy, sequence=sequence):
        grouped.setdefault(score.variant["kept"], []).append(100 * score.quality)
    return {kept: summarise(values) for kept, values in sorted(grouped.items())}


def by_steps(results: Results, layers: str) -> dict[int, Summary]:
    """Top-1 accuracy in percent by the number of steps, over the orders of such layers of protocol "grouped"."""
    by_number: dict[int, list[float]] = {}
    for score in results.of("grouped", layers=layers):
        by_number.setdefault(score.variant["steps"], []).append(100 * score.quality)
    return {steps: summarise(values) for steps, values in sorted(by_number.items())}


def strategies_of(several: Sequence[Results]) -> list[str]:
    """The strategies of the protocol "pruned" in these results, each once."""
    strategies: dict[str, None] = {}
    for results in several:
        for score in results.of("pruned"):
            strategies[score.variant["strategy"]] = None
    return list(strategies)


def grouped_bars(axis: Axes, kinds: Sequence[tuple[str, Sequence[float]]], groups: Sequence[str]) -> list[list[float]]:
    """Draw horizontal bars in groups, the first group at the top; return where the bars of each kind are, by group.

    Args:
        axis: where to draw them.
        kinds: the name of each kind of bar, which several may share, and its width in each group.
        groups: what the groups are called.
    """
    thickness = 0.84 / len(kinds)
    places = []
    for index, (name, widths) in enumerate(kinds):
        # The bars of a group lie above each other, and together they are centred on its tick.
        shift = (index - (len(kinds) - 1) / 2) * thickness
        rows = [row + shift for row in range(len(groups))]
        axis.barh(rows, widths, thickness, color=COLOURS[index % len(COLOURS)], label=name)
        places.append(rows)
    # A name is no formula, even with dollars in it.
    axis.set_yticks(range(len(groups)), groups, fontsize=9, parse_math=False)
    # Upside down, so that the first group is at the top, and without a margin. Without groups it needs a height, too.
    axis.set_ylim(max(len(groups), 1) - 0.5, -0.5)
    return places
