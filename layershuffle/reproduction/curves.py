"""The report's figures, each from the numbers in a table that goes with it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layershuffle.reproduction.collect import Run, SetupResults
from layershuffle.results.figures import COLOURS
from layershuffle.results.record import Summary, summarise

SEQUENCES = {"original": "in original sequence", "random": "in random sequence"}


@dataclass(frozen=True)
class Point:
    """One point of a curve: accuracy in percent, mean and spread over the seeds of a method."""

    panel: str
    method: str
    kept: int
    accuracy: Summary


def pruned(setup: SetupResults) -> list[Point]:
    """Figures 1b and 1c of arXiv 2407.04513: accuracy by the number of layers kept, in both sequences.

    Of models that were trained with all layers, random ones are kept, and a model's draws are averaged. Models that
    were refined at a reduced depth are shown at that depth, in the sequence of their training and in random ones.
    """
    points = []
    for sequence, panel in SEQUENCES.items():
        for method in setup.samplers:
            points += _points(setup, panel, method, method, "random", sequence)
        for method in setup.methods:
            if method.startswith("reduced-depth-"):
                found = _points(setup, panel, method, "reduced-depth", "first", sequence)
                points += [point for point in found if point.kept == int(method.rpartition("-")[2])]
    return points


def all_subsets(setup: SetupResults) -> list[Point]:
    """The exact mean over all choices of k layers, for every k, in original sequence."""
    points = []
    for method in setup.methods:
        by_kept: dict[int, list[float]] = {}
        for run in setup.of(method):
            for kept, accuracies in _by_kept(run, "landscape"):
                by_kept.setdefault(kept, []).append(100 * fmean(accuracies))
        points += [Point("all choices of k layers", method, k, summarise(v)) for k, v in sorted(by_kept.items())]
    return points


def _points(setup: SetupResults, panel: str, method: str, name: str, strategy: str, sequence: str) -> list[Point]:
    by_kept: dict[int, list[float]] = {}
    for run in setup.of(method):
        for kept, accuracies in _by_kept(run, "pruned", strategy=strategy, sequence=sequence):
            by_kept.setdefault(kept, []).append(100 * fmean(accuracies))
    return [Point(panel, name, kept, summarise(values)) for kept, values in sorted(by_kept.items())]


def _by_kept(run: Run, protocol: str, **variant: str) -> Iterator[tuple[int, list[float]]]:
    found: dict[int, list[float]] = {}
    for score in run.scores(protocol, **variant):
        found.setdefault(score.variant["kept"], []).append(score.top1)
    yield from found.items()


def curves(points: Sequence[Point], chance: float) -> Figure:
    """A panel for each sequence, a line for each method; bands are one standard deviation over the seeds."""
    panels = list(dict.fromkeys(point.panel for point in points))
    methods = list(dict.fromkeys(point.method for point in points))
    figure = Figure(figsize=(1.2 + 3.8 * len(panels), 4.2), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    for axis, panel in zip(axes, panels):
        for method, colour in zip(methods, cycle(COLOURS)):
            line = sorted((p.kept, p.accuracy) for p in points if (p.panel, p.method) == (panel, method))
            kept, mean = [k for k, _ in line], [a.mean for _, a in line]
            axis.plot(kept, mean, color=colour, marker="o", markersize=3.5, label=method)
            low = [a.mean - (a.std or 0) for _, a in line]
            axis.fill_between(
                kept, low, [2 * m - bottom for m, bottom in zip(mean, low)], color=colour, alpha=0.18, lw=0
            )
        axis.axhline(chance, color="grey", linewidth=0.8, linestyle=":", label="chance")
        axis.set(title=panel, xlabel="layers kept", ylim=(0, 100))
        axis.set_xticks(sorted({point.kept for point in points}))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    axes[0].set_ylabel("top-1 accuracy, %")
    columns = min(len(methods) + 1, 3 * len(panels) - 1)  # a wider legend would be cut off
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False)
    return figure
