"""Results as pictures beside their files."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layershuffle.files import write_whole
from layershuffle.results import tables
from layershuffle.results.figures import COLOURS, STRATEGIES, by_kept, plots
from layershuffle.results.record import Results, summarise

SEQUENCES: dict[str, Any] = {"original": "-", "random": "--"}


def draw(results: Results, output: Path, title: str = "") -> dict[str, Path]:
    """Every picture that ``results`` fill, beside the results file ``output``; returns where each went, by name."""
    found = {plot.name: plot.draw for plot in plots(results)}
    covered = {name for plot in plots(results) for name in plot.protocols}
    if not found or any(p.figure == "overview" and p.name not in covered for p in tables.shown(results)):
        found = {"overview": lambda results, title: overview([results], title), **found}
    paths = {name: output.with_suffix(f".{name}.png" if index else ".png") for index, name in enumerate(found)}
    for name, path in paths.items():
        save(found[name](results, title), path)
    return paths


def overview(several: Sequence[Results], title: str = "") -> Figure:
    """Top-1 accuracy of one or more models at full depth and, if pruned orders were scored, by layers kept.

    Full depth: a bar for the sequential order and one for arbitrary orders, with a dot for each
    order; that bar is the mean of the orders that ran over all images. Pruned: one
    panel a strategy; lines are means over the draws, bands reach from the worst draw to the best.
    """
    strategies = list(dict.fromkeys(s.variant["strategy"] for r in several for s in r.scores if s.protocol == "pruned"))
    figure = Figure(figsize=(max(6.4, 4.2 + 3.2 * len(strategies)), 4.4), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, 1 + len(strategies), sharey=True, squeeze=False)[0])
    for index, results in enumerate(several):
        _full_depth(axes[0], results, index, len(several))
        for axis, strategy in zip(axes[1:], strategies):
            _pruned(axis, results, strategy, COLOURS[index % len(COLOURS)])
    for axis in axes:
        for results in several:
            axis.axhline(100 / results.model["config"]["num_classes"], color="grey", linewidth=0.8, linestyle=":")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set(title="all layers", ylabel="top-1 accuracy, %", ylim=(0, 100))
    axes[0].set_xticks([0, 1], ["sequential\norder", "arbitrary\norders"])
    for axis, strategy in zip(axes[1:], strategies):
        axis.set(title=STRATEGIES.get(strategy, strategy), xlabel="layers kept")
    handles = [Line2D([], [], color=COLOURS[i % len(COLOURS)], lw=4, label=r.label) for i, r in enumerate(several)]
    if strategies:
        handles += [
            Line2D([], [], color="grey", linestyle=style, label=f"in {sequence} sequence")
            for sequence, style in SEQUENCES.items()
        ]
    handles.append(Line2D([], [], color="grey", linewidth=0.8, linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles) if strategies else 3, frameon=False)
    figure.suptitle(title)
    return figure


def _full_depth(axis: Axes, results: Results, index: int, models: int) -> None:
    width = 0.8 / models
    for column, protocol in enumerate(("sequential", "arbitrary")):
        scores = [score for score in results.scores if score.protocol == protocol]
        if not scores:
            continue
        x = column - 0.4 + (index + 0.5) * width
        fixed = [score for score in scores if score.order is not None] or scores
        mean, best = 100 * summarise(score.top1 for score in fixed).mean, 100 * max(score.top1 for score in scores)
        colour = COLOURS[index % len(COLOURS)]
        axis.bar(x, mean, 0.92 * width, color=colour, alpha=0.85)
        axis.annotate(f"{mean:.1f}", (x, best), (0, 4), textcoords="offset points", ha="center", fontsize=7)
        if len(scores) > 1:
            spread = [x + 0.6 * width * (draw / (len(scores) - 1) - 0.5) for draw in range(len(scores))]
            axis.scatter(spread, [100 * score.top1 for score in scores], s=4, color="black", alpha=0.5, zorder=3)


def _pruned(axis: Axes, results: Results, strategy: str, colour: str) -> None:
    for sequence, style in SEQUENCES.items():
        points = list(by_kept(results, strategy, sequence))
        kept = [k for k, _ in points]
        axis.plot(kept, [100 * s.mean for _, s in points], style, color=colour, marker=".")
        low, high = [100 * s.min for _, s in points], [100 * s.max for _, s in points]
        axis.fill_between(kept, low, high, color=colour, alpha=0.12, linewidth=0)
        axis.set_xticks(kept)


def save(figure: Figure, path: str | Path) -> None:
    """Write ``figure`` to ``path``, whose suffix says in which format."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix.removeprefix(".") or "png", dpi=150)
    write_whole(path, buffer.getvalue())
