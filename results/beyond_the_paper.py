"""Makes the tables and the picture of docs/findings/beyond_the_paper.md from results files.

    python results/beyond_the_paper.py results/beyond_the_paper/glyphs baseline layershuffle

The first argument is a folder METHOD/SEED/results.json; the methods to show follow, by default all. ``--failing FILE``
plots accuracy against the probability that a layer is dead, and ``--longer FILE`` against the length of the training.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layershuffle.results import Estimate, Results, Score, estimate
from layershuffle.results.tables import markdown, percent

COLUMNS = {
    "sequential": ("sequential", {}),
    "arbitrary": ("arbitrary", {"reading": "fixed"}),
    "6 of 12, in sequence": ("pruned", {"kept": 6, "strategy": "random", "sequence": "original"}),
    "6 of 12, shuffled": ("pruned", {"kept": 6, "strategy": "random", "sequence": "random"}),
    "20% dead": ("failing", {"dead": "20%"}),
    "30% dead": ("failing", {"dead": "30%"}),
    "50% dead": ("failing", {"dead": "50%"}),
}


def read_methods(folder: Path, names: Sequence[str]) -> list[list[Results]]:
    """The results of each method, a file for each seed; without names, of all methods of the folder."""
    if not names:
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    methods = []
    for name in names:
        paths = sorted((folder / name).glob("seed*/results.json"))
        methods.append([Results.load(path) for path in paths])
    return methods


def scores(run: Results, column: str) -> list[Score]:
    """The scores of a run in the orders of a column."""
    protocol, variant = COLUMNS[column]
    return [s for s in run.scores if s.protocol == protocol and s.variant.items() >= variant.items()]


def accuracy(runs: list[Results], column: str) -> Estimate | None:
    """Top-1 over the runs of all seeds, with its interval."""
    return estimate([scores(run, column) for run in runs])


def calibration(runs: list[Results], column: str) -> float:
    """The expected calibration error in percent."""
    return 100 * fmean(score.ece for run in runs for score in scores(run, column) if score.ece is not None)


def mean(runs: list[Results], column: str) -> float:
    """Top-1 over the runs, in percent."""
    return 100 * fmean(score.top1 for run in runs for score in scores(run, column))


Lines = dict[str, list[tuple[float, float]]]
"""The points (x, y) of each line by its name."""


def plot_lines(axis: Axes, lines: Lines, xlabel: str, title: str = "") -> None:
    """Plot top-1 accuracy in percent."""
    for (name, points), marker in zip(lines.items(), "osD^vP*X<>"):
        axis.plot(*zip(*sorted(points)), marker=marker, markersize=5, label=name)
    axis.set(xlabel=xlabel, ylim=(0, 100), title=title)
    axis.grid(axis="y", alpha=0.3)


def plot_failing(methods: list[list[Results]], path: Path) -> None:
    """Plot accuracy against the probability that a layer is dead."""
    dead = {0: "arbitrary", 20: "20% dead", 30: "30% dead", 50: "50% dead"}
    figure = Figure(figsize=(7, 4), layout="constrained")
    axis = figure.subplots()
    lines: Lines = {}
    for runs in methods:
        lines[runs[0].label] = [(share, mean(runs, column)) for share, column in dead.items()]
    plot_lines(axis, lines, "each layer is dead with this probability, %")
    axis.set(ylabel="top-1 accuracy, %", xticks=[*dead])
    figure.legend(loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150)


def plot_longer(methods: list[list[Results]], path: Path) -> None:
    """Plot accuracy against the layer executions of the training, a line for each method."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for axis, column in zip(axes, ("sequential", "arbitrary", "50% dead")):
        lines: Lines = {}
        for runs in methods:
            # Trainings of several lengths are the points of one line.
            method = re.sub("-(twice|four|eight)$", "", runs[0].label)
            million = runs[0].model.compute["layer_executions"] / 1e6
            lines.setdefault(method, []).append((million, mean(runs, column)))
        plot_lines(axis, lines, "million layer executions", column)
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:.2g}")
    axes[0].set_ylabel("top-1 accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def row(runs: list[Results]) -> list[str]:
    """A method's row of the table."""
    accuracies = [percent(accuracy(runs, column)) for column in COLUMNS]
    errors = f"{calibration(runs, 'sequential'):.1f} / {calibration(runs, 'arbitrary'):.1f}"
    return [runs[0].label, str(len(runs)), *accuracies, errors]


def main() -> None:
    """Print a table, and plot what the options say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--failing", type=Path, metavar="FILE")
    parser.add_argument("--longer", type=Path, metavar="FILE")
    args = parser.parse_args()

    methods = read_methods(args.folder, args.methods)
    header = ["", "seeds", *COLUMNS, "ECE, sequential / arbitrary"]
    print(markdown(header, [row(runs) for runs in methods]))
    if args.failing:
        plot_failing(methods, args.failing)
    if args.longer:
        plot_longer(methods, args.longer)


if __name__ == "__main__":
    main()
