"""The studies of layer order as pictures: which results fill one, and what it shows."""

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layershuffle.results import positions
from layershuffle.results.record import Results, Score, Summary, summarise

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STRATEGIES = {"first": "first layers kept", "even": "evenly spaced layers kept", "random": "random layers kept"}
LAYER_BY_LAYER = {"ablations": "layer left out", "swaps": "layer exchanged with the next"}


@dataclass(frozen=True)
class Study:
    """A picture of one model.

    Attributes:
        name: of its file.
        caption: what it shows.
        draw: makes it of the results, under a title.
        protocols: it shows the scores of these.
        measure: it shows this measure.
    """

    name: str
    caption: str
    draw: Callable[[Results, str], Figure]
    protocols: tuple[str, ...] = ()
    measure: str | None = None

    def shows(self, results: Results) -> bool:
        """Whether ``results`` have what it shows."""
        return self.measure in results.measures or any(score.protocol in self.protocols for score in results.scores)


def painters(results: Results, title: str = "") -> Figure:
    """Top-1 accuracy against the number of layers affected, one line a strategy (arXiv 2407.09298).

    Where a strategy is random the line is the mean and the band reaches from the worst draw to the best.
    """
    found: dict[str, dict[int, list[float]]] = {}
    for score in (score for score in results.scores if score.protocol == "painters"):
        of_strategy = found.setdefault(score.variant["strategy"], {})
        of_strategy.setdefault(score.variant["affected"], []).append(100 * score.top1)
    figure, axis = _figure(results, title, xlabel="layers affected")
    for at, (strategy, by_affected) in enumerate(found.items()):
        _line(axis, by_affected, strategy, at)
    axis.set_xticks(sorted({affected for by_affected in found.values() for affected in by_affected}))
    figure.legend(loc="outside right center", frameon=False)
    return figure


def layer_by_layer(results: Results, title: str = "") -> Figure:
    """Top-1 accuracy with each single layer left out, and with it exchanged with the next (arXiv 2406.19384)."""
    figure, axis = _figure(results, title, xlabel="layer")
    scores = [score for score in results.scores if score.protocol in LAYER_BY_LAYER]
    for at, (protocol, label) in enumerate(LAYER_BY_LAYER.items()):
        points = {s.variant["layer"]: [100 * s.top1] for s in scores if s.protocol == protocol}
        if points:
            _line(axis, points, label, at)
    axis.set_xticks(range(1 + max(score.variant["layer"] for score in scores)))
    figure.legend(loc="outside right center", frameon=False)
    return figure


def sandwiches(results: Results, title: str = "") -> Figure:
    """Top-1 accuracy of the sandwich orders by k (arXiv 1911.03864), and of random sublayer permutations."""
    figure, axis = _figure(results, title, xlabel="k attention sublayers first, k feed-forward sublayers last")
    scores = [score for score in results.scores if score.protocol == "sublayers"]
    ks = [score.variant["k"] for score in scores if "k" in score.variant]
    draws = [100 * score.top1 for score in scores if score.variant["strategy"] == "random"]
    _line(axis, {s.variant["k"]: [100 * s.top1] for s in scores if "k" in s.variant}, "sandwich", 0)
    if draws:
        _line(axis, dict.fromkeys(ks, draws), "random permutations", 1)
    axis.set_xticks(ks)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def instancewise(results: Results, title: str = "") -> Figure:
    """Top-1 accuracy when images choose their order, at best, and in each order, with how many chose it."""
    scores = [score for score in results.scores if score.protocol == "instancewise"]
    figure, axis = _figure(results, title)
    for at, score in enumerate(scores):
        axis.bar(at, 100 * score.top1, color=COLOURS[0 if score.order is None else 1], alpha=0.85)
        chosen = "" if score.chosen is None else f"\n{100 * score.chosen:.0f}% chose it"
        label = f"{100 * score.top1:.1f}{chosen}"
        axis.annotate(label, (at, 100 * score.top1), (0, 4), textcoords="offset points", ha="center", fontsize=7)
    names = ["each image's\nchoice", "each image's\nbest (oracle)"]
    names += [textwrap.fill(str(score.order), 16) for score in scores if score.order is not None]
    axis.set_xticks(range(len(scores)), names, fontsize=7)
    axis.set_ylim(0, 112)
    axis.set_yticks(range(0, 101, 20))
    figure.legend(loc="outside right center", frameon=False)
    return figure


def given(results: Results, title: str = "") -> Figure:
    """Top-1 accuracy in each of the orders that were named."""
    scores = [score for score in results.scores if score.protocol in ("sequential", "given")]
    figure = Figure(figsize=(7.6, 1.6 + 0.42 * len(scores)), layout="constrained")
    axis = figure.subplots()
    values = [100 * score.top1 for score in scores]
    axis.barh(range(len(scores)), values, color=[COLOURS[score.protocol == "given"] for score in scores], alpha=0.85)
    for at, value in enumerate(values):
        axis.annotate(f"{value:.1f}", (value, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
    names = ["own order" if s.protocol == "sequential" else textwrap.shorten(str(s.order), 44) for s in scores]
    axis.set_yticks(range(len(scores)), names, fontsize=7)
    axis.axvline(
        100 / results.model["config"]["num_classes"], color="grey", linewidth=0.8, linestyle=":", label="chance"
    )
    axis.set(xlabel="top-1 accuracy, %", xlim=(0, 105))
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right center", frameon=False)
    figure.suptitle(title)
    return figure


def landscape(results: Results, title: str = "") -> Figure:
    """Top-1 accuracy of every choice of layers, in original sequence, by how many they are."""
    by_count: dict[int, list[float]] = {}
    for score in results.scores:
        if score.protocol == "landscape":
            by_count.setdefault(score.variant["kept"], []).append(100 * score.top1)
    figure, axis = _figure(results, title, xlabel="layers kept")
    for kept, values in by_count.items():
        spread = [kept + 0.5 * ((at + 0.5) / len(values) - 0.5) for at in range(len(values))]
        axis.scatter(spread, values, s=3, color=COLOURS[0], alpha=0.35, linewidth=0)
    for name, best, style in (("best choice", max, "^-"), ("mean", fmean, ".-"), ("worst choice", min, "v-")):
        points = [best(values) for values in by_count.values()]
        axis.plot(list(by_count), points, style, color=COLOURS[1], markersize=4, linewidth=1, label=name)
    axis.set_xticks(list(by_count))
    figure.legend(loc="outside right center", frameon=False)
    return figure


def depth_curve(results: Results, title: str = "") -> Figure:
    """Top-1 accuracy against layers run, and against the time per image that was measured at each depth."""
    seconds = {int(k): value for k, value in results.measures["seconds_per_image"].items()}
    strategies = list(dict.fromkeys(s.variant["strategy"] for s in results.scores if s.protocol == "pruned"))
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    by_layers, by_time = figure.subplots(1, 2, sharey=True)
    for at, strategy in enumerate(strategies):
        points = dict(by_kept(results, strategy, "original"))
        for axis, xs in ((by_layers, list(points)), (by_time, [1000 * seconds[k] for k in points])):
            label = STRATEGIES.get(strategy, strategy).removesuffix(" kept") if axis is by_layers else None
            axis.plot(xs, [100 * s.mean for s in points.values()], ".-", color=COLOURS[at], label=label)
            low, high = [100 * s.min for s in points.values()], [100 * s.max for s in points.values()]
            axis.fill_between(xs, low, high, color=COLOURS[at], alpha=0.12, linewidth=0)
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


# --- Matrices -----------------------------------------------------------------------------------------------


def swap_matrix(results: Results, title: str = "") -> Figure:
    """Top-1 accuracy with every two layers exchanged; on the diagonal, the model's own order."""
    scores = [score for score in results.scores if score.protocol == "swap-matrix"]
    size = 1 + max(score.variant["other"] for score in scores)
    values = np.zeros((size, size))
    for score in scores:
        one, other = score.variant["one"], score.variant["other"]
        values[one, other] = values[other, one] = 100 * score.top1
    return _heat_map(values, title, "top-1 accuracy with two layers exchanged, %", "layer", ".0f")


def cosine(results: Results, title: str = "") -> Figure:
    """Cosine similarity of the activations after every two steps (arXiv 2407.09298)."""
    label = "cosine similarity of the activations"
    return _heat_map(np.array(results.measures["cosine"]), title, label, "after step", ".2f")


def _heat_map(values: np.ndarray, title: str, label: str, axis_label: str, form: str) -> Figure:
    size = len(values)
    figure = Figure(figsize=(max(4.8, 1.9 + 0.42 * size), max(4.0, 1.1 + 0.42 * size)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(values, cmap="viridis")
    axis.set(xlabel=axis_label, ylabel=axis_label, xticks=range(size), yticks=range(size))
    middle = (values.min() + values.max()) / 2
    for row, column in np.ndindex(values.shape):
        colour = "white" if values[row, column] <= middle else "black"
        text = format(values[row, column], form).replace("0.", ".")
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, label=label, shrink=0.8)
    figure.suptitle(title, fontsize="medium")
    return figure


# --- What they share ----------------------------------------------------------------------------------------


def by_kept(results: Results, strategy: str, sequence: str) -> Iterator[tuple[int, Summary]]:
    """Top-1 accuracy by the number of layers kept, over the draws of a strategy of protocol "pruned"."""
    grouped: dict[int, list[Score]] = {}
    for score in results.scores:
        if (score.variant.get("strategy"), score.variant.get("sequence")) == (strategy, sequence):
            grouped.setdefault(score.variant["kept"], []).append(score)
    for kept, scores in sorted(grouped.items()):
        yield kept, summarise(score.top1 for score in scores)


def _figure(results: Results, title: str, **labels: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    axis = figure.subplots()
    _decorate(axis, results)
    axis.set(ylabel="top-1 accuracy, %", ylim=(0, 100), **labels)
    figure.suptitle(title)
    return figure, axis


def _decorate(axis: Axes, results: Results, label: bool = True) -> None:
    """The levels to compare with."""
    for score in results.scores:
        if score.protocol == "sequential":
            axis.axhline(
                100 * score.top1, color=mpl.rcParams["text.color"], linewidth=0.8, label="own order" if label else None
            )
    chance = 100 / results.model["config"]["num_classes"]
    axis.axhline(chance, color="grey", linewidth=0.8, linestyle=":", label="chance" if label else None)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)


def _line(axis: Axes, points: dict[int, list[float]], label: str, at: int) -> None:
    xs, found = zip(*((x, summarise(values)) for x, values in sorted(points.items())))
    style = {"color": COLOURS[at % len(COLOURS)], "marker": "osD^vP*"[at % 7], "markersize": 4}
    axis.plot(xs, [s.mean for s in found], label=label, **style)  # type: ignore[arg-type]
    if any(s.n > 1 for s in found):
        low, high = [s.min for s in found], [s.max for s in found]
        axis.fill_between(xs, low, high, color=COLOURS[at % len(COLOURS)], alpha=0.12, linewidth=0)


STUDIES = (
    Study("given", "Accuracy in orders that were named one by one.", given, ("given",)),
    Study("landscape", "Accuracy of every choice of layers, by how many they are.", landscape, ("landscape",)),
    Study(
        "painters",
        "Accuracy against the number of middle layers affected, one line a strategy (arXiv 2407.09298). Bands reach "
        "from the worst draw to the best.",
        painters,
        ("painters",),
    ),
    Study(
        "layers",
        "Accuracy with each layer left out, and with it exchanged with the next (arXiv 2406.19384).",
        layer_by_layer,
        tuple(LAYER_BY_LAYER),
    ),
    Study("swap-matrix", "Accuracy with every two layers exchanged.", swap_matrix, ("swap-matrix",)),
    Study(
        "sublayers",
        "Accuracy of the sandwich orders (arXiv 1911.03864), and of random permutations of the sublayers.",
        sandwiches,
        ("sublayers",),
    ),
    Study(
        "instancewise",
        "Accuracy when each image chooses its order (arXiv 2103.03457), at best, and in each order.",
        instancewise,
        ("instancewise",),
    ),
    Study(
        "cosine",
        "Cosine similarity of the activations after every two steps (arXiv 2407.09298).",
        cosine,
        measure="cosine",
    ),
    Study("search", "The search for an order: the loss at each step, or the layers' ranks.", search, measure="search"),
    Study("depth", "Accuracy against layers run, and against time.", depth_curve, measure="seconds_per_image"),
    Study(
        "representations",
        "UMAP of a layer's output, coloured by the position that it held.",
        lambda results, _: positions.representations([results]),
        measure="representations",
    ),
    Study(
        "contributions",
        "How much each layer changes the class token, coloured by the position that it held.",
        lambda results, _: positions.contributions([results]),
        measure="contributions",
    ),
)


def shown_by(results: Results) -> Iterator[Study]:
    """The studies that ``results`` fill."""
    return (study for study in STUDIES if study.shows(results))
