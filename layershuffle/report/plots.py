"""Results as pictures."""

import io
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layershuffle.report import positions
from layershuffle.results import Results, Score, Summary, summarise, write_whole

# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
STRATEGIES = {"first": "first layers kept", "even": "evenly spaced layers kept", "random": "random layers kept"}
LAYER_BY_LAYER = {"ablations": "layer left out", "swaps": "layer exchanged with the next"}
SEQUENCES: dict[str, Any] = {"original": "-", "random": "--"}


def draw(results: Results, output: Path, title: str = "") -> dict[str, Path]:
    """Every figure that ``results`` fill, beside the results file ``output``; where each went, by name."""
    protocols = {score.protocol for score in results.scores}
    figures: dict[str, Callable[[Path], None]] = {}
    if "painters" in protocols:
        figures["painters"] = lambda path: painters(results, path, title)
    if protocols & LAYER_BY_LAYER.keys():
        figures["layers"] = lambda path: layer_by_layer(results, path, title)
    if "swap-matrix" in protocols:
        figures["swap-matrix"] = lambda path: swap_matrix(results, path, title)
    if "sublayers" in protocols:
        figures["sublayers"] = lambda path: sandwiches(results, path, title)
    if "instancewise" in protocols:
        figures["instancewise"] = lambda path: instancewise(results, path, title)
    if "cosine" in results.measures:
        figures["cosine"] = lambda path: cosine(results, path, title)
    if "search" in results.measures:
        figures["search"] = lambda path: search(results, path)
    if "seconds_per_image" in results.measures:
        figures["depth"] = lambda path: depth_curve(results, path, title)
    if "representations" in results.measures:
        figures["representations"] = lambda path: _save(positions.representations([results]), path)
    if "contributions" in results.measures:
        figures["contributions"] = lambda path: _save(positions.contributions([results]), path)
    if not figures or protocols & {"arbitrary", "pruned"} - ({"pruned"} if "depth" in figures else set()):
        figures = {"overview": lambda path: overview([results], path, title)} | figures
    main = next(iter(figures))
    paths = {name: output.with_suffix(".png" if name == main else f".{name}.png") for name in figures}
    for name, path in paths.items():
        figures[name](path)
    return paths


def overview(several: Sequence[Results], path: str | Path, title: str = "") -> None:
    """Top-1 accuracy of one or more models at full depth and, if pruned orders were scored, by layers kept.

    Full depth: a bar for the sequential order and one for arbitrary orders, with a dot for each
    order; that bar is the mean of the orders that ran over all images. Pruned: one
    panel a strategy; lines are means over the draws, bands reach from the worst draw to the best.
    """
    strategies = list(dict.fromkeys(s.variant["strategy"] for r in several for s in r.scores if s.protocol == "pruned"))
    figure = Figure(figsize=(max(6.4, 4.2 + 3.2 * len(strategies)), 4.4), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, 1 + len(strategies), sharey=True, squeeze=False)[0])
    for at, results in enumerate(several):
        _full_depth(axes[0], results, at, len(several))
        for axis, strategy in zip(axes[1:], strategies):
            _pruned(axis, results, strategy, COLOURS[at % len(COLOURS)])
    for axis in axes:
        for results in several:
            axis.axhline(100 / results.model["config"]["num_classes"], color="grey", linewidth=0.8, linestyle=":")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set(title="all layers", ylabel="top-1 accuracy, %", ylim=(0, 100))
    axes[0].set_xticks([0, 1], ["sequential\norder", "arbitrary\norders"])
    for axis, strategy in zip(axes[1:], strategies):
        axis.set(title=STRATEGIES.get(strategy, strategy), xlabel="layers kept")
    handles = [Line2D([], [], color=COLOURS[at % len(COLOURS)], lw=4, label=r.label) for at, r in enumerate(several)]
    if strategies:
        handles += [
            Line2D([], [], color="grey", linestyle=style, label=f"in {sequence} sequence")
            for sequence, style in SEQUENCES.items()
        ]
    handles.append(Line2D([], [], color="grey", linewidth=0.8, linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) if strategies else 3, frameon=False)
    figure.suptitle(title)
    _save(figure, path)


def _full_depth(axis: Axes, results: Results, at: int, models: int) -> None:
    width = 0.8 / models
    for column, protocol in enumerate(("sequential", "arbitrary")):
        scores = [score for score in results.scores if score.protocol == protocol]
        if not scores:
            continue
        x = column - 0.4 + (at + 0.5) * width
        fixed = [score for score in scores if score.order is not None] or scores
        mean, best = 100 * summarise(score.top1 for score in fixed).mean, 100 * max(score.top1 for score in scores)
        colour = COLOURS[at % len(COLOURS)]
        axis.bar(x, mean, 0.92 * width, color=colour, alpha=0.85)
        axis.annotate(f"{mean:.1f}", (x, best), (0, 4), textcoords="offset points", ha="center", fontsize=7)
        if len(scores) > 1:
            spread = [x + 0.6 * width * (draw / (len(scores) - 1) - 0.5) for draw in range(len(scores))]
            axis.scatter(spread, [100 * score.top1 for score in scores], s=4, color="black", alpha=0.5, zorder=3)


def _pruned(axis: Axes, results: Results, strategy: str, colour: str) -> None:
    for sequence, style in SEQUENCES.items():
        points = list(_by_kept(results, strategy, sequence))
        kept = [k for k, _ in points]
        axis.plot(kept, [100 * s.mean for _, s in points], style, color=colour, marker=".")
        axis.fill_between(
            kept,
            [100 * s.min for _, s in points],
            [100 * s.max for _, s in points],
            color=colour,
            alpha=0.12,
            linewidth=0,
        )
        axis.set_xticks(kept)


def _by_kept(results: Results, strategy: str, sequence: str) -> Iterator[tuple[int, Summary]]:
    grouped: dict[int, list[Score]] = {}
    for score in results.scores:
        if (score.variant.get("strategy"), score.variant.get("sequence")) == (strategy, sequence):
            grouped.setdefault(score.variant["kept"], []).append(score)
    for kept, scores in sorted(grouped.items()):
        yield kept, summarise(score.top1 for score in scores)


# --- Strategies and layers one by one -----------------------------------------------------------------------


def painters(results: Results, path: str | Path, title: str = "") -> None:
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
    _save(figure, path)


def layer_by_layer(results: Results, path: str | Path, title: str = "") -> None:
    """Top-1 accuracy with each single layer left out, and with it exchanged with the next (arXiv 2406.19384)."""
    figure, axis = _figure(results, title, xlabel="layer")
    scores = [score for score in results.scores if score.protocol in LAYER_BY_LAYER]
    for at, (protocol, label) in enumerate(LAYER_BY_LAYER.items()):
        points = {s.variant["layer"]: [100 * s.top1] for s in scores if s.protocol == protocol}
        if points:
            _line(axis, points, label, at)
    axis.set_xticks(range(1 + max(score.variant["layer"] for score in scores)))
    figure.legend(loc="outside right center", frameon=False)
    _save(figure, path)


def sandwiches(results: Results, path: str | Path, title: str = "") -> None:
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
    _save(figure, path)


def instancewise(results: Results, path: str | Path, title: str = "") -> None:
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
    _save(figure, path)


def depth_curve(results: Results, path: str | Path, title: str = "") -> None:
    """Top-1 accuracy against layers run, and against the time per image that was measured at each depth."""
    seconds = {int(k): value for k, value in results.measures["seconds_per_image"].items()}
    strategies = list(dict.fromkeys(s.variant["strategy"] for s in results.scores if s.protocol == "pruned"))
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    by_layers, by_time = figure.subplots(1, 2, sharey=True)
    for at, strategy in enumerate(strategies):
        points = dict(_by_kept(results, strategy, "original"))
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
    _save(figure, path)


def search(results: Results, path: str | Path) -> None:
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
    figure.suptitle(f"{results.label} ({results.data['name']}, {results.data['split']}): {measures['strategy']}")
    _save(figure, path)


# --- Matrices -----------------------------------------------------------------------------------------------


def swap_matrix(results: Results, path: str | Path, title: str = "") -> None:
    """Top-1 accuracy with every two layers exchanged; on the diagonal, the model's own order."""
    scores = [score for score in results.scores if score.protocol == "swap-matrix"]
    size = 1 + max(score.variant["other"] for score in scores)
    values = np.zeros((size, size))
    for score in scores:
        one, other = score.variant["one"], score.variant["other"]
        values[one, other] = values[other, one] = 100 * score.top1
    _heat_map(values, path, title, "top-1 accuracy with two layers exchanged, %", "layer", ".0f")


def cosine(results: Results, path: str | Path, title: str = "") -> None:
    """Cosine similarity of the activations after every two steps (arXiv 2407.09298)."""
    label = "cosine similarity of the activations"
    _heat_map(np.array(results.measures["cosine"]), path, title, label, "after step", ".2f")


def _heat_map(values: np.ndarray, path: str | Path, title: str, label: str, axis_label: str, form: str) -> None:
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
    _save(figure, path)


# --- What they share ----------------------------------------------------------------------------------------


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
            axis.axhline(100 * score.top1, color="black", linewidth=0.8, label="own order" if label else None)
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


def _save(figure: Figure, path: str | Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.removeprefix(".") or "png", dpi=150)
    write_whole(path, buffer.getvalue())
