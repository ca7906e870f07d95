"""Results as pictures: the drawings that protocols name, and those of other measures."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layershuffle.errors import UserError
from layershuffle.orders.protocols import Protocol
from layershuffle.results import positions, tables
from layershuffle.results.record import Results, Score, Summary, summarise

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STRATEGIES = {"first": "first layers kept", "even": "evenly spaced layers kept", "random": "random layers kept"}


@dataclass(frozen=True)
class Plot:
    """A picture of one model's results.

    Attributes:
        name: of its file.
        caption: what it shows.
        draw: makes it of the results, under a title.
        protocols: the protocols whose scores it shows.
        measure: the measure that it shows, if it shows one.
    """

    name: str
    caption: str
    draw: Callable[[Results, str], Figure]
    protocols: tuple[str, ...] = ()
    measure: str | None = None


def plots(results: Results) -> Iterator[Plot]:
    """The pictures that ``results`` fill, but for the overview."""
    measured = [plot for plot in MEASURES if plot.measure in results.measures]
    covered = {name for plot in measured for name in plot.protocols}
    by_picture: dict[str, list[Protocol]] = {}
    for protocol in tables.shown(results):
        if protocol.figure not in (None, "overview") and protocol.name not in covered:
            by_picture.setdefault(protocol.picture or protocol.name, []).append(protocol)
    for name, protocols in by_picture.items():
        figure = protocols[0].figure or ("lines" if protocols[0].columns else "bars")
        if isinstance(figure, str) and figure not in DRAWINGS:
            raise UserError(f"the protocol {name} has no figure {figure}: choose from {', '.join(DRAWINGS)}")
        draw = figure if callable(figure) else partial(DRAWINGS[figure], protocols)
        caption = " ".join(["Top-1 accuracy:", *(protocol.description for protocol in protocols)])
        if figure == "lines":
            caption += " Bands reach from the worst draw to the best."
        yield Plot(name, caption, draw, tuple(protocol.name for protocol in protocols))
    yield from measured


# --- Drawings of protocols ----------------------------------------------------------------------------------


def lines(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy against the first number in the variant, a line for each value of the rest.

    Lines are means over draws and bands reach from the worst draw to the best. Scores whose variant has no number are
    a level line.
    """
    found: dict[str, dict[float | None, list[float]]] = {}
    keys = []
    for protocol in protocols:
        for score in _scores(results, protocol.name):
            (key, x), *_ = [*_numbers(score), ("", None)]
            label = ", ".join(str(value) for name, value in score.variant.items() if name != key)
            of_label = found.setdefault(label or protocol.label or protocol.name, {})
            of_label.setdefault(x, []).append(100 * score.top1)
            keys.append(key)
    xs = sorted({x for points in found.values() for x in points if x is not None})
    if not xs:
        return bars(protocols, results, title)
    figure, axis = _figure(results, title, xlabel=protocols[0].xlabel or protocols[0].columns or max(keys))
    for index, (label, points) in enumerate(found.items()):
        _line(axis, dict.fromkeys(xs, points[None]) if None in points else points, label, index)
    axis.set_xticks(xs)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def bars(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Mean top-1 accuracy of each variant, with a line from the worst draw to the best, beside the own order's."""
    shown = {"sequential", *(protocol.name for protocol in protocols)}
    groups = {group: scores for group, scores in results.groups().items() if group[0] in shown}
    found = [summarise(100 * score.top1 for score in scores) for scores in groups.values()]
    figure = Figure(figsize=(7.6, 1.6 + 0.42 * len(groups)), layout="constrained")
    axis = figure.subplots()
    colours = [COLOURS[group[0] != "sequential"] for group in groups]
    axis.barh(range(len(groups)), [summary.mean for summary in found], color=colours, alpha=0.85)
    for row, summary in enumerate(found):
        if summary.n > 1:
            axis.plot([summary.min, summary.max], [row, row], color="black", linewidth=0.8)
        axis.annotate(
            f"{summary.mean:.1f}", (summary.max, row), (3, 0), textcoords="offset points", va="center", fontsize=7
        )
    names = [", ".join(map(str, variant)) or name for name, *variant in groups]
    names = ["own order" if name == "sequential" else textwrap.shorten(name, 44) for name in names]
    axis.set_yticks(range(len(groups)), names, fontsize=7)
    axis.axvline(_chance(results), color="grey", linewidth=0.8, linestyle=":", label="chance")
    axis.set(xlabel="top-1 accuracy, %", xlim=(0, 105))
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    figure.suptitle(title)
    return figure


def scatter(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy of every order against the first number in the variant, with the best, the mean and the worst."""
    by_number: dict[float, list[float]] = {}
    for protocol in protocols:
        for score in _scores(results, protocol.name):
            by_number.setdefault(next(_numbers(score))[1], []).append(100 * score.top1)
    figure, axis = _figure(results, title, xlabel=protocols[0].xlabel or protocols[0].columns)
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
    for score in _scores(results, protocol.name):
        (_, row), (_, column), *_ = _numbers(score)
        found.setdefault((row, column), []).append(100 * score.top1)
    ticks = sorted({number for pair in found for number in pair})
    pairs = [[found.get((row, column), found.get((column, row), [np.nan])) for column in ticks] for row in ticks]
    values = np.array([[fmean(draws) for draws in row] for row in pairs])
    label = f"top-1 accuracy with {protocol.label}, %" if protocol.label else "top-1 accuracy, %"
    return _heat_map(values, ticks, title, label, protocol.xlabel, ".0f")


def choices(protocols: Sequence[Protocol], results: Results, title: str = "") -> Figure:
    """Top-1 accuracy when images choose their order, at best, and in each order, with how many chose it."""
    scores = [score for protocol in protocols for score in _scores(results, protocol.name)]
    figure, axis = _figure(results, title)
    for index, score in enumerate(scores):
        axis.bar(index, 100 * score.top1, color=COLOURS[0 if score.order is None else 1], alpha=0.85)
        chosen = "" if score.chosen is None else f"\n{100 * score.chosen:.0f}% chose it"
        label = f"{100 * score.top1:.1f}{chosen}"
        axis.annotate(label, (index, 100 * score.top1), (0, 4), textcoords="offset points", ha="center", fontsize=7)
    names = ["each image's\nchoice", "each image's\nbest (oracle)"]
    names += [textwrap.fill(str(score.order), 16) for score in scores if score.order is not None]
    axis.set_xticks(range(len(scores)), names, fontsize=7)
    axis.set_ylim(0, 112)
    axis.set_yticks(range(0, 101, 20))
    figure.legend(loc="outside right center", frameon=False)
    return figure


DRAWINGS = {"lines": lines, "bars": bars, "scatter": scatter, "matrix": matrix, "choices": choices}
"""What the entry of a protocol can name as its figure."""


# --- Drawings of measures -----------------------------------------------------------------------------------


def depth_curve(results: Results, title: str = "") -> Figure:
    """Top-1 accuracy against layers run, and against the time per image that was measured at each depth."""
    seconds = {int(k): value for k, value in results.measures["seconds_per_image"].items()}
    strategies = list(dict.fromkeys(s.variant["strategy"] for s in results.scores if s.protocol == "pruned"))
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    by_layers, by_time = figure.subplots(1, 2, sharey=True)
    for index, strategy in enumerate(strategies):
        points = dict(by_kept(results, strategy, "original"))
        for axis, xs in ((by_layers, list(points)), (by_time, [1000 * seconds[k] for k in points])):
            label = STRATEGIES.get(strategy, strategy).removesuffix(" kept") if axis is by_layers else None
            axis.plot(xs, [100 * s.mean for s in points.values()], ".-", color=COLOURS[index], label=label)
            low, high = [100 * s.min for s in points.values()], [100 * s.max for s in points.values()]
            axis.fill_between(xs, low, high, color=COLOURS[index], alpha=0.12, linewidth=0)
    for axis in (by_layers, by_time):
        _decorate(axis, results, label=axis is by_layers)
    by_layers.set(xlabel="layers run", ylabel="top-1 accuracy, %", ylim=(0, 100), xticks=sorted(seconds))
    by_time.set(xlabel=f"ms per image, batches of {results.evaluation['batch_size']}", xlim=(0, None))
    figure.legend(loc="outside lower center", ncols=len(strategies) + 2, frameon=False)
    figure.suptitle(title)
    return figure


def search(results: Results, title: str = "") -> Figure:
    """The loss at each step of a search, on the images it searched on; or what the layers were ranked by."""
    measures = results.measures["search"]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    if "trace" in measures:
        losses = [np.nan if step["loss"] is None else step["loss"] for step in measures["trace"]]
        steps, label = range(len(losses)), "exchanges"
        if measures["strategy"] == "greedy":
            steps, label = range(1, len(losses) + 1), "layers appended"
        axis.plot(steps, losses, "o-", color=COLOURS[0], markersize=4)
        axis.set(xlabel=label, ylabel=f"cross-entropy on the {measures['images']} images searched on", xticks=steps)
        axis.set_ylim(bottom=0)
    else:
        axis.bar(range(len(measures["exponents"])), measures["exponents"], color=COLOURS[0])
        axis.set(xlabel="layer", ylabel="heavy-tail exponent", xticks=range(len(measures["exponents"])))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{title}: {measures['strategy']}" if title else measures["strategy"])
    return figure


def cosine(results: Results, title: str = "") -> Figure:
    """Cosine similarity of the activations after every two steps (arXiv 2407.09298)."""
    label = "cosine similarity of the activations"
    values = np.array(results.measures["cosine"])
    return _heat_map(values, range(len(values)), title, label, "after step", ".2f")


# --- What they share ----------------------------------------------------------------------------------------


def by_kept(results: Results, strategy: str, sequence: str) -> Iterator[tuple[int, Summary]]:
    """Top-1 accuracy by the number of layers kept, over the draws of a strategy of protocol "pruned"."""
    grouped: dict[int, list[Score]] = {}
    for score in results.scores:
        if (score.variant.get("strategy"), score.variant.get("sequence")) == (strategy, sequence):
            grouped.setdefault(score.variant["kept"], []).append(score)
    for kept, scores in sorted(grouped.items()):
        yield kept, summarise(score.top1 for score in scores)


def _scores(results: Results, protocol: str) -> list[Score]:
    return [score for score in results.scores if score.protocol == protocol]


def _numbers(score: Score) -> Iterator[tuple[str, Any]]:
    return ((key, value) for key, value in score.variant.items() if isinstance(value, (int, float)))


def _chance(results: Results) -> float:
    return 100 / int(results.model["config"]["num_classes"])


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


def _figure(results: Results, title: str, **labels: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axis = figure.subplots()
    _decorate(axis, results)
    axis.set(ylabel="top-1 accuracy, %", ylim=(0, 100), **labels)
    figure.suptitle(title)
    return figure, axis


def _decorate(axis: Axes, results: Results, label: bool = True) -> None:
    """Draw the levels to compare with: the model's own order, and chance."""
    for score in results.scores:
        if score.protocol == "sequential":
            axis.axhline(100 * score.top1, color="black", linewidth=0.8, label="own order" if label else None)
    axis.axhline(_chance(results), color="grey", linewidth=0.8, linestyle=":", label="chance" if label else None)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)


def _line(axis: Axes, points: Mapping[Any, list[float]], label: str, index: int) -> None:
    xs, found = zip(*((x, summarise(values)) for x, values in sorted(points.items())))
    style = {"color": COLOURS[index % len(COLOURS)], "marker": "osD^vP*"[index % 7], "markersize": 4}
    axis.plot(xs, [s.mean for s in found], label=label, **style)  # type: ignore[arg-type]
    if any(s.n > 1 for s in found):
        low, high = [s.min for s in found], [s.max for s in found]
        axis.fill_between(xs, low, high, color=COLOURS[index % len(COLOURS)], alpha=0.12, linewidth=0)


MEASURES = (
    Plot(
        "cosine",
        "Cosine similarity of the activations after every two steps (arXiv 2407.09298).",
        cosine,
        measure="cosine",
    ),
    Plot(
        "search", "The search for an order: the loss at each step, or the layers' ranks.", search, ("search",), "search"
    ),
    Plot("depth", "Accuracy against layers run, and against time.", depth_curve, ("pruned",), "seconds_per_image"),
    Plot(
        "representations",
        "UMAP of a layer's output, coloured by the position that it held.",
        lambda results, _: positions.representations([results]),
        measure="representations",
    ),
    Plot(
        "contributions",
        "How much each layer changes the class token, coloured by the position that it held.",
        lambda results, _: positions.contributions([results]),
        measure="contributions",
    ),
)
