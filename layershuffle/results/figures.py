"""Results as pictures: an overview, the drawings that protocols name, and those of other measures."""

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.orders.order import Order, Step
from layershuffle.orders.protocols import Protocol
from layershuffle.results import tables
from layershuffle.results.estimates import Summary, summarise
from layershuffle.results.measures import (
    ByClassCounts,
    Contributions,
    Cosine,
    EarlyExits,
    Pruning,
    Representations,
    Search,
    SecondsPerImage,
)
from layershuffle.results.record import Measure, Results
from layershuffle.results.score import Score

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
CHANCE: dict[str, Any] = {"color": "grey", "linewidth": 0.8, "linestyle": ":"}
STRATEGIES = {"first": "first layers kept", "even": "evenly spaced layers kept", "random": "random layers kept"}
MATRIX, MISTAKES = 30, 25
"""Up to so many classes are drawn as a matrix; of more classes this number of the most frequent mistakes is shown."""
M = TypeVar("M", bound=Measure)
SEQUENCES: dict[str, Any] = {"original": "-", "random": "--"}


@dataclass(frozen=True)
class Plot:
    """A picture of one model's results, and the protocols and the measure that it shows."""

    name: str
    caption: str
    draw: Callable[[Results, str], Figure]
    protocols: tuple[str, ...] = ()
    measure: str = ""


def plots(results: Results) -> Iterator[Plot]:
    """The pictures that ``results`` fill, but for the overview."""
    measured = {kind.name: drawn for kind, drawn in MEASURES.items() if results.measure(kind) is not None}
    covered = {name for _, protocols in measured.values() for name in protocols}
    by_picture: dict[str, list[Protocol]] = {}
    for protocol in tables.shown(results):
        if protocol.figure not in (None, "overview") and protocol.name not in covered:
            by_picture.setdefault(protocol.picture or protocol.name, []).append(protocol)
    for name, protocols in by_picture.items():
        figure = protocols[0].figure or ("lines" if protocols[0].columns else "bars")
        if isinstance(figure, str) and figure not in DRAWINGS:
            raise UserError(f"the protocol {name} has no figure {figure}: choose from {', '.join(DRAWINGS)}")
        drawing = figure if callable(figure) else partial(DRAWINGS[figure], protocols)
        caption = " ".join(["Top-1 accuracy:", *(protocol.caption for protocol in protocols)])
        if figure == "lines":
            caption += " Bands reach from the worst draw to the best."
        yield Plot(name, caption, drawing, tuple(protocol.name for protocol in protocols))
    for name, (measure, shown) in measured.items():
        yield Plot(measure.__name__, measure.__doc__ or "", measure, shown, name)


def draw(results: Results, output: Path, title: str = "") -> dict[str, Path]:
    """Every picture that ``results`` fill, beside the results file ``output``; returns where each went, by name."""
    found = {plot.name: plot.draw for plot in plots(results)}
    covered = {name for plot in plots(results) for name in plot.protocols}
    if (results.scores and not covered) or any(
        p.figure == "overview" and p.name not in covered for p in tables.shown(results)
    ):
        found = {"overview": lambda results, title: overview([results], title), **found}
    paths = {name: output.with_suffix(f".{name}.png" if index else ".png") for index, name in enumerate(found)}
    for name, path in paths.items():
        save(found[name](results, title), path)
    return paths


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``, whose suffix says in which format."""
    write_whole(path, rendered(figure, path.suffix[1:]))


def rendered(figure: Figure, form: str) -> bytes:
    """The content of a file of ``figure``: "png", or "svg", which is always the same for the same figure."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


# --- Overview -----------------------------------------------------------------------------------------------


def overview(several: Sequence[Results], title: str = "") -> Figure:
    """Top-1 accuracy of one or more models at full depth and, if pruned orders were scored, by layers kept.

    Full depth: a bar for the sequential order and one for arbitrary orders, with a dot for each order; that bar is the
    mean of the orders that ran over all images. Pruned: one panel a strategy; lines are means over the draws, bands
    reach from the worst draw to the best.
    """
    strategies = list(dict.fromkeys(s.variant["strategy"] for results in several for s in results.of("pruned")))
    width = max(6.4, 4.2 + 3.2 * len(strategies))
    figure, (full_depth, *axes) = panels(1 + len(strategies), width, 4.4, title)
    handles = []
    for index, results in enumerate(several):
        colour = COLOURS[index % len(COLOURS)]
        handles.append(Line2D([], [], color=colour, lw=4, label=results.label))
        _full_depth(full_depth, results, colour, 0.8 * index / len(several) - 0.4, 0.8 / len(several))
        for axis, strategy in zip(axes, strategies):
            for sequence, style in SEQUENCES.items():
                points = by_kept(results, strategy, sequence)
                band(axis, points, colour, linestyle=style, marker=".")
                axis.set_xticks(list(points))
        for axis in (full_depth, *axes):
            axis.axhline(chance(results), **CHANCE)
    full_depth.set(title="all layers", ylabel="top-1 accuracy, %", ylim=(0, 100))
    full_depth.set_xticks([0, 1], ["sequential\norder", "arbitrary\norders"])
    for axis, strategy in zip(axes, strategies):
        axis.set(title=STRATEGIES.get(strategy, strategy), xlabel="layers kept")
    for sequence, style in SEQUENCES.items() if strategies else ():
        handles.append(Line2D([], [], color="grey", linestyle=style, label=f"in {sequence} sequence"))
    handles.append(Line2D([], [], label="chance", **CHANCE))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) if strategies else 3, frameon=False)
    return figure


def _full_depth(axis: Axes, results: Results, colour: str, left: float, width: float) -> None:
    for column, protocol in enumerate(("sequential", "arbitrary")):
        if scores := results.of(protocol):
            x = column + left + width / 2
            mean = fmean(100 * score.top1 for score in [s for s in scores if s.order is not None] or scores)
            axis.bar(x, mean, 0.92 * width, color=colour, alpha=0.85)
            _annotate(axis, f"{mean:.1f}", x, 100 * max(score.top1 for score in scores))
        if len(scores) > 1:
            spread = [x + 0.6 * width * (draw / (len(scores) - 1) - 0.5) for draw in range(len(scores))]
            axis.scatter(spread, [100 * score.top1 for score in scores], s=4, color="black", alpha=0.5, zorder=3)


# --- Drawings of protocols ----------------------------------------------------------------------------------


def lines(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy against the first number in the variant, a line for each value of the rest.

    Lines are means over draws and bands reach from the worst draw to the best. Scores whose variant has no number are
    a level line.
    """
    found: dict[str, dict[float | None, list[float]]] = {}
    keys = []
    for protocol in protocols:
        for score in results.of(protocol.name):
            (key, x), *_ = [*_numbers(score), ("", None)]
            label = ", ".join(str(value) for name, value in score.variant.items() if name != key)
            of_label = found.setdefault(label or protocol.label or protocol.name, {})
            of_label.setdefault(x, []).append(100 * score.top1)
            keys.append(key)
    xs = sorted({x for points in found.values() for x in points if x is not None})
    if not xs:
        return bars(protocols, results, title)
    figure, axis = _accuracy(results, title, xlabel=protocols[0].xlabel or protocols[0].columns or max(keys))
    for index, (label, points) in enumerate(found.items()):
        level = points.get(None)
        means = {x: summarise(level or points[x]) for x in xs if level or x in points}
        marker = "osD^vP*"[index % 7]
        band(axis, means, COLOURS[index % len(COLOURS)], marker=marker, markersize=4, label=label)
    axis.set_xticks(xs)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def bars(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Mean top-1 accuracy of each variant, with a line from the worst draw to the best, beside the base order's."""
    wanted = {"sequential", *(protocol.name for protocol in protocols)}
    groups = {group: scores for group, scores in results.groups().items() if group[0] in wanted}
    figure, (axis,) = panels(1, 7.6, 1.6 + 0.42 * len(groups), title, grid=False)
    for row, (group, scores) in enumerate(groups.items()):
        summary = summarise(100 * score.top1 for score in scores)
        axis.barh(row, summary.mean, color=COLOURS[group[0] != "sequential"], alpha=0.85)
        if summary.n > 1:
            axis.plot([summary.min, summary.max], [row, row], color="black", linewidth=0.8)
        _annotate(axis, f"{summary.mean:.1f}", summary.max, row, (3, 0), ha="left", va="center")
    names = [", ".join(map(str, variant)) or name for name, *variant in groups]
    names = ["base order" if name == "sequential" else textwrap.shorten(name, 44) for name in names]
    axis.set_yticks(range(len(groups)), names, fontsize=7)
    axis.axvline(chance(results), label="chance", **CHANCE)
    axis.set(xlabel="top-1 accuracy, %", xlim=(0, 105))
    axis.invert_yaxis()
    figure.legend(loc="outside right center", frameon=False)
    return figure


def scatter(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy of every order against the first number in the variant, with the best, the mean and the worst."""
    by_number: dict[float, list[float]] = {}
    for score in results.of(*(protocol.name for protocol in protocols)):
        by_number.setdefault(next(_numbers(score))[1], []).append(100 * score.top1)
    figure, axis = _accuracy(results, title, xlabel=protocols[0].xlabel or protocols[0].columns)
    for number, values in by_number.items():
        spread = [number + 0.5 * ((index + 0.5) / len(values) - 0.5) for index in range(len(values))]
        axis.scatter(spread, values, s=3, color=COLOURS[0], alpha=0.35, linewidth=0)
    for name, best, style in (("best choice", max, "^-"), ("mean", fmean, ".-"), ("worst choice", min, "v-")):
        points = [best(values) for values in by_number.values()]
        axis.plot(list(by_number), points, style, color=COLOURS[1], markersize=4, linewidth=1, label=name)
    axis.set_xticks(list(by_number))
    figure.legend(loc="outside right center", frameon=False)
    return figure


def matrix(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy by the first two numbers in the variant. A pair that has no score gets its mirror image's."""
    (protocol,) = protocols
    found: dict[tuple[float, float], list[float]] = {}
    for score in results.of(protocol.name):
        (_, row), (_, column), *_ = _numbers(score)
        found.setdefault((row, column), []).append(100 * score.top1)
    ticks = sorted({number for pair in found for number in pair})
    pairs = [[found.get((row, column), found.get((column, row), [np.nan])) for column in ticks] for row in ticks]
    values = np.array([[fmean(draws) for draws in row] for row in pairs])
    label = f"top-1 accuracy with {protocol.label}, %" if protocol.label else "top-1 accuracy, %"
    return _heat_map(values, ticks, title, label, protocol.xlabel, ".0f")


def choices(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy when images choose their order, at best, and in each order, with how many chose it."""
    scores = results.of(*(protocol.name for protocol in protocols))
    figure, axis = _accuracy(results, title)
    for index, score in enumerate(scores):
        axis.bar(index, 100 * score.top1, color=COLOURS[0 if score.order is None else 1], alpha=0.85)
        chosen = "" if score.chosen is None else f"\n{100 * score.chosen:.0f}% chose it"
        _annotate(axis, f"{100 * score.top1:.1f}{chosen}", index, 100 * score.top1)
    names = ["each image's\nchoice", "each image's\nbest (oracle)"]
    names += [textwrap.fill(score.order, 16) for score in scores if score.order is not None]
    axis.set_xticks(range(len(scores)), names, fontsize=7)
    axis.set(ylim=(0, 112), yticks=range(0, 101, 20))
    figure.legend(loc="outside right center", frameon=False)
    return figure


DRAWINGS = {"lines": lines, "bars": bars, "scatter": scatter, "matrix": matrix, "choices": choices}
"""What the entry of a protocol can name as its figure."""


# --- Drawings of measures, whose docstrings are their captions ----------------------------------------------


def depth(results: Results, title: str = "") -> Figure:
    """Accuracy against layers run, and against time. Choose early exit's threshold on other images than these."""
    seconds = _measure(results, SecondsPerImage).seconds
    strategies = list(dict.fromkeys(score.variant["strategy"] for score in results.of("pruned")))
    figure, (by_layers, by_time) = panels(2, 10.5, 4.4, title)
    for strategy, colour in zip(strategies, COLOURS):
        points = by_kept(results, strategy, "original")
        label = STRATEGIES.get(strategy, strategy).removesuffix(" kept")
        band(by_layers, points, colour, marker=".", label=label)
        band(by_time, {1000 * seconds[k]: summary for k, summary in points.items()}, colour, marker=".")
    by_rule: dict[str, list[tuple[float, float]]] = {}
    early_exits = results.measure(EarlyExits)
    for stopped in early_exits.exits if early_exits else ():
        by_rule.setdefault(stopped.rule, []).append((stopped.layers, 100 * stopped.top1))
    for (rule, exits), colour in zip(by_rule.items(), COLOURS[len(strategies) :]):
        label = f"early exit by {rule}"
        by_layers.plot(*zip(*exits), "x--", color=colour, markersize=4, linewidth=1, label=label)
    _levels(by_layers, results)
    _levels(by_time, results, label=False)
    by_layers.set(xlabel="layers run (with early exit: mean)", xticks=sorted(seconds))
    by_layers.set(ylabel="top-1 accuracy, %", ylim=(0, 100))
    by_time.set(xlabel=f"ms per image, batches of {results.evaluation.batch_size}", xlim=(0, None))
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def search(results: Results, title: str = "") -> Figure:
    """The search for an order: the loss at each step, or the layers' ranks."""
    measures = _measure(results, Search)
    figure, (axis,) = panels(1, 6.4, 4.2, f"{title}: {measures.strategy}" if title else measures.strategy)
    if measures.trace is not None:
        losses = [np.nan if step.loss is None else step.loss for step in measures.trace]
        first, label = (1, "layers appended") if measures.strategy == "greedy" else (0, "exchanges")
        steps = range(first, first + len(losses))
        axis.plot(steps, losses, "o-", color=COLOURS[0], markersize=4)
        axis.set(xlabel=label, ylabel=f"cross-entropy on the {measures.images} images searched on", xticks=steps)
        axis.set_ylim(bottom=0)
    else:
        exponents = measures.exponents or []
        layers = range(len(exponents))
        axis.bar(layers, exponents, color=COLOURS[0])
        axis.set(xlabel="layer", ylabel="heavy-tail exponent", xticks=layers)
    return figure


def prune(results: Results, title: str = "") -> Figure:
    """Accuracy against time of the best choice of each number of layers; the one that meets the budget is ringed."""
    measures = _measure(results, Pruning)
    figure, axis = _accuracy(results, title, xlabel=f"ms per image, batches of {results.evaluation.batch_size}")
    line = []
    for score in results.of("prune"):
        kept = score.variant["kept"]
        point = measures.milliseconds[kept], 100 * score.top1
        if "sequence" in score.variant:
            axis.plot(*point, "D", color=COLOURS[2], markersize=5, label="the same in the sequence found")
        else:
            line.append(point)
            _annotate(axis, str(kept), *point)
        if score.order == measures.chosen:
            axis.plot(*point, "o", color=COLOURS[1], markersize=11, fillstyle="none", label="chosen")
    axis.plot(*zip(*line), "o-", color=COLOURS[0], markersize=4, label="best layers, and their number")
    axis.set(xlim=(0, None))
    figure.legend(loc="outside right center", frameon=False)
    return figure


def cosine(results: Results, title: str = "") -> Figure:
    """Cosine similarity of the activations after every two steps (arXiv 2407.09298)."""
    values = np.array(_measure(results, Cosine).matrix)
    return _heat_map(values, range(len(values)), title, "cosine similarity of the activations", "after step", ".2f")


def representations(results: Results, title: str = "", others: Sequence[Results] = ()) -> Figure:
    """UMAP of a layer's output, coloured by the position that it held."""
    # Figures 4a and 4b of arXiv 2407.04513, with a panel for each model.
    several = [results, *others]
    positions = range(max(_measure(shown, Representations).steps for shown in several))
    figure, axes, colours = _coloured_panels(several, 4.6, "position", positions)
    for axis, shown in zip(axes, several):
        found = _measure(shown, Representations)
        x, y = np.array(found.plane).T
        axis.scatter(x, y, c=colours.to_rgba(np.array(found.positions)), s=8, linewidths=0, rasterized=True)
        axis.set(title=f"{shown.label}, layer {found.layer}", xticks=[], yticks=[])
    return figure


def contributions(results: Results, title: str = "", others: Sequence[Results] = ()) -> Figure:
    """How much each layer changes what the model classifies by, by how far the layer is from its original place."""
    # Figures 4c and 4d of arXiv 2407.04513, with a panel for each model and a line for each layer.
    changes = [(shown, changes_by_step(shown)) for shown in (results, *others)]
    steps = sorted({step for _, found in changes for step, _ in found})
    figure, axes, colours = _coloured_panels([results, *others], 4.6, "layer", [str(Order([step])) for step in steps])
    for axis in axes[1:]:
        axis.sharey(axes[0])
    for axis, (shown, found) in zip(axes, changes):
        lines: dict[Step, dict[int, list[float]]] = {}
        for (step, position), values in found.items():
            lines.setdefault(step, {}).setdefault(distance(shown, step, position), []).extend(values)
        for step, by_distance in lines.items():
            colour = colours.to_rgba(np.array(steps.index(step)))
            away = sorted(by_distance)
            axis.plot(away, [fmean(by_distance[d]) for d in away], ".-", color=colour, linewidth=1, markersize=4)
        axis.axvline(0, **CHANCE)
        axis.set(title=shown.label, yscale="log", ylabel=change(shown))
        axis.set_xlabel("position, less the layer's original one")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def confusion(results: Results, title: str = "") -> Figure:
    """Which classes are taken for which: of the images of each class (row) the percentage taken for each (column)."""
    names, counted = tables.class_names(results), tables.by_class(results)
    if len(names) > MATRIX:
        return _mistakes(results, title)
    columns, side = min(2, len(counted)), max(4.2, 1.6 + 0.26 * len(names))
    figure = Figure(figsize=(columns * side + 0.8, -(-len(counted) // columns) * side + 0.4), layout="constrained")
    axes = figure.subplots(-(-len(counted) // columns), columns, squeeze=False).flatten()
    images = np.array(_measure(results, ByClassCounts).images)
    for axis, (group, orders) in zip(axes, counted.items()):
        shares = 100 * np.array(orders.matrix()) / np.maximum(1, orders.samples * images)[:, None]
        drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        for row, column in np.argwhere(shares >= 0.5):
            colour = "white" if shares[row, column] > 60 else "black"
            axis.text(column, row, f"{shares[row, column]:.0f}", ha="center", va="center", color=colour, fontsize=7)
        axis.set(title=textwrap.shorten(group, 40), xlabel="taken for")
        shown = [textwrap.shorten(name, 20) for name in names]
        turned = 90 if max(map(len, shown)) > 3 else 0
        axis.set_xticks(range(len(names)), shown, rotation=turned, fontsize=7, parse_math=False)
        axis.set_yticks(range(len(names)), shown, fontsize=7, parse_math=False)
    axes[0].set_ylabel("class")
    for axis in axes[len(counted) :]:
        axis.remove()
    figure.colorbar(drawn, ax=figure.axes, label="images of the class, %", shrink=0.7)
    figure.suptitle(title, fontsize="medium")
    return figure


def _mistakes(results: Results, title: str) -> Figure:
    """The most frequent mistakes in the first kind of order, beside how frequent they are in the others."""
    names, counted = tables.class_names(results), tables.by_class(results)
    images = _measure(results, ByClassCounts).images
    pairs = [(true, predicted) for true, predicted, _ in next(iter(counted.values())).confused[:MISTAKES]]
    figure, (axis,) = panels(1, 7.6, 1.6 + 0.3 * len(pairs), title, grid=False)
    for index, (group, orders) in enumerate(counted.items()):
        found = {(true, predicted): count for true, predicted, count in orders.confused}
        shares = [100 * found.get(pair, 0) / orders.samples / images[pair[0]] for pair in pairs]
        thickness = 0.8 / len(counted)
        rows = [row - 0.4 + (index + 0.5) * thickness for row in range(len(pairs))]
        axis.barh(rows, shares, thickness, color=COLOURS[index % len(COLOURS)], label=textwrap.shorten(group, 30))
    labels = [f"{textwrap.shorten(names[a], 30)} as {textwrap.shorten(names[b], 30)}" for a, b in pairs]
    axis.set_yticks(range(len(pairs)), labels, fontsize=7, parse_math=False)
    axis.set(xlabel="images of the class taken for the other, %", xlim=(0, None))
    axis.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


MEASURES: dict[type[Measure], tuple[Callable[[Results, str], Figure], tuple[str, ...]]] = {
    Cosine: (cosine, ()),
    Search: (search, ("search",)),
    Pruning: (prune, ("prune",)),
    SecondsPerImage: (depth, ("pruned",)),
    Representations: (representations, ()),
    Contributions: (contributions, ()),
    ByClassCounts: (confusion, ()),
}
"""The drawing of each measure, and the protocols whose scores it shows."""


# --- What they share ----------------------------------------------------------------------------------------


def panels(count: int, width: float, height: float, title: str | None = None, grid: bool = True) -> tuple[Figure, Any]:
    """A figure of that size in inches, and the axes of its panels, which stand side by side and share the y axis."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = list(figure.subplots(1, count, sharey=True, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(grid, axis="y", **({"alpha": 0.3} if grid else {}))
    if title is not None:
        figure.suptitle(title)
    return figure, axes


def band(axis: Axes, points: Mapping[Any, Summary], colour: str, alpha: float = 0.12, **style: Any) -> None:
    """Draw a line through the means by x, and a band from the smallest value to the largest."""
    found = points.values()
    axis.plot(list(points), [summary.mean for summary in found], color=colour, **style)
    low, high = [summary.min for summary in found], [summary.max for summary in found]
    if low != high:
        axis.fill_between(list(points), low, high, color=colour, alpha=alpha, linewidth=0)


def by_kept(results: Results, strategy: str, sequence: str) -> dict[int, Summary]:
    """Top-1 accuracy in percent by the number of layers kept, over the draws of a strategy of protocol "pruned"."""
    grouped: dict[int, list[float]] = {}
    for score in results.of("pruned", strategy=strategy, sequence=sequence):
        grouped.setdefault(score.variant["kept"], []).append(100 * score.top1)
    return {kept: summarise(values) for kept, values in sorted(grouped.items())}


def changes_by_step(results: Results) -> dict[tuple[Step, int], np.ndarray]:
    """The changes of ``change`` in all images, by the step and the position that it held."""
    found: dict[tuple[Step, int], list[float]] = {}
    measured = _measure(results, Contributions)
    for order, changes in zip(measured.orders, measured.values):
        for position, (step, value) in enumerate(zip(Order(order), changes)):
            found.setdefault((step, position), []).append(value)
    return {key: np.array(values) for key, values in sorted(found.items())}


def change(results: Results) -> str:
    """What the study of contributions measured. Files of version 0.2 and before have nothing but the quotient."""
    measured = _measure(results, Contributions)
    text = f"norm of the change of the {measured.token or 'class token'}"
    return text if measured.added else f"{text}, over its norm"


def distance(results: Results, step: Step, position: int) -> int:
    """How much later than originally ``step`` runs at ``position``; if the model repeats it, than at the nearest place.

    Files of version 0.2 and before lack the model's base order, which is taken to have been ascending.
    """
    own = results.evaluation.order or sorted(Order(_measure(results, Contributions).orders[0]))
    return min((position - place for place, other in enumerate(Order(own)) if other == step), key=abs)


def _measure(results: Results, kind: type[M]) -> M:
    """The measure of this kind, which the results have."""
    measure = results.measure(kind)
    if measure is None:
        raise TypeError(f"these results have no {kind.name}")
    return measure


def chance(results: Results) -> float:
    """The accuracy of guessing, in percent."""
    return 100 / results.model.num_classes


def levels(results: Results) -> dict[str, float]:
    """Accuracy in percent of guessing and, if clearly higher, of always naming the most frequent class."""
    counts = results.measure(ByClassCounts)
    images = counts.images if counts else [0]
    most = 100 * max(images) / max(1, sum(images))
    found = {"chance": chance(results)}
    return found | ({"most frequent class": most} if most > found["chance"] + 0.5 else {})


def draw_levels(axis: Axes, found: Mapping[str, float]) -> None:
    """Draw such accuracies as level lines."""
    for (name, value), style in zip(found.items(), (":", "-.")):
        axis.axhline(value, label=name, **CHANCE | {"linestyle": style})


def _numbers(score: Score) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in score.variant.items() if isinstance(value, (int, float)))


def _annotate(axis: Axes, text: str, x: float, y: float, offset: tuple[int, int] = (0, 4), **style: Any) -> None:
    axis.annotate(text, (x, y), offset, textcoords="offset points", fontsize=7, **({"ha": "center"} | style))


def _accuracy(results: Results, title: str, **labels: str) -> tuple[Figure, Axes]:
    figure, (axis,) = panels(1, 7.6, 4.2, title)
    _levels(axis, results)
    axis.set(ylabel="top-1 accuracy, %", ylim=(0, 100), **labels)
    return figure, axis


def _levels(axis: Axes, results: Results, label: bool = True) -> None:
    """Draw the levels to compare with: the model's base order, and chance."""
    for score in results.of("sequential"):
        axis.axhline(100 * score.top1, color="black", linewidth=0.8, label="base order" if label else None)
    axis.axhline(chance(results), label="chance" if label else None, **CHANCE)


def _heat_map(values: np.ndarray, ticks: Sequence[float], title: str, label: str, axis_label: str, form: str) -> Figure:
    size = len(values)
    figure = Figure(figsize=(max(4.8, 1.9 + 0.42 * size), max(4.0, 1.1 + 0.42 * size)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="viridis")
    axis.set(xlabel=axis_label, ylabel=axis_label)
    axis.set_xticks(range(size), map(str, ticks))
    axis.set_yticks(range(size), map(str, ticks))
    middle = (np.nanmin(values) + np.nanmax(values)) / 2
    for row, column in np.argwhere(np.isfinite(values)):
        colour = "white" if values[row, column] <= middle else "black"
        text = format(values[row, column], form).replace("0.", ".")
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, label=label, shrink=0.8)
    figure.suptitle(title, fontsize="medium")
    return figure


def _coloured_panels(
    several: Sequence[Results], height: float, label: str, names: Sequence[Any]
) -> tuple[Figure, list[Axes], ScalarMappable]:
    """A panel for each of the results, which share a bar of colours: one for each of ``names``."""
    viridis = colormaps["viridis"]
    colours = ScalarMappable(BoundaryNorm(np.arange(-0.5, len(names)), viridis.N), viridis)
    figure = Figure(figsize=(1.4 + 4.2 * len(several), height), layout="constrained")
    axes = list(figure.subplots(1, len(several), squeeze=False)[0])
    bar = figure.colorbar(colours, ax=axes, label=label, ticks=range(len(names)), shrink=0.8)
    bar.minorticks_off()
    bar.set_ticklabels(list(map(str, names)))
    return figure, axes, colours
