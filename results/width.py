"""Makes the tables and the pictures of docs/findings/width.md from results files.

    python results/width.py results/width/glyphs baseline layershuffle --picture results/width/glyphs.png

The first argument is a folder METHOD/SEED/results.json; the methods to show follow, by default all.
"""

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

from beyond_the_paper import Lines, plot_lines, read_methods
from matplotlib.figure import Figure

from layershuffle.results import Results, Score, estimate
from layershuffle.results.tables import markdown, percent

Column = tuple[str, dict[str, Any]]
"""A protocol, and what the variants of its scores have in common."""

STEPS = (12, 6, 4, 3, 2, 1)
IN_FLIGHT = (1, 2, 3, 4, 6)


def in_steps(steps: int, layers: str) -> Column:
    """Groups that run in so many steps."""
    return "grouped", {"steps": steps, "layers": layers}


def in_flight(running: int, layers: str) -> Column:
    """Layers that don't wait, so many of them at a time."""
    return "asynchronous", {"in flight": running, "layers": layers}


COLUMNS: dict[str, Column] = {
    "base order": ("sequential", {}),
    "any order, in 12 steps": in_steps(12, "random"),
    "in 4": in_steps(4, "random"),
    "in 3": in_steps(3, "random"),
    "in 2": in_steps(2, "random"),
    "in 1": in_steps(1, "random"),
    "4 in flight": in_flight(4, "random"),
    "half dead": ("failing", {"dead": "50%"}),
    "6 of 12, in 6 steps": in_steps(6, "random, half left out"),
    "6 of 12, in 2": in_steps(2, "random, half left out"),
}


def scores(run: Results, column: Column) -> list[Score]:
    """The scores of a run in the orders of a column."""
    protocol, variant = column
    return [score for score in run.scores if score.protocol == protocol and score.variant.items() >= variant.items()]


def mean(runs: list[Results], column: Column) -> float | None:
    """Top-1 over the runs, in percent; None if nothing was scored there."""
    accuracies = [100 * score.top1 for run in runs for score in scores(run, column)]
    return fmean(accuracies) if accuracies else None


def table(methods: list[list[Results]]) -> str:
    """A Markdown table with a row for each method, and a column for each kind of order that was scored."""
    every_run = [run for runs in methods for run in runs]
    columns = {name: column for name, column in COLUMNS.items() if any(scores(run, column) for run in every_run)}
    rows = []
    for runs in methods:
        accuracies = [percent(estimate([scores(run, column) for run in runs])) for column in columns.values()]
        rows.append([runs[0].label, str(len(runs)), *accuracies])
    return markdown(["", "seeds", *columns], rows)


def picture(methods: list[list[Results]], path: Path) -> None:
    """Plot accuracy against the number of steps and against the layers in flight, a line for each method."""
    figure = Figure(figsize=(9, 3.9), layout="constrained")
    steps_axis, half_axis, flight_axis = figure.subplots(1, 3, sharey=True)
    panels = (
        (steps_axis, STEPS, lambda number: in_steps(number, "random"), "sequential steps", "12 layers, any order"),
        (
            half_axis,
            STEPS,
            lambda number: in_steps(number, "random, half left out"),
            "sequential steps",
            "6 of 12 layers",
        ),
        (flight_axis, IN_FLIGHT, lambda number: in_flight(number, "random"), "layers in flight", "without waiting"),
    )
    for axis, numbers, column, xlabel, title in panels:
        lines: Lines = {}
        for runs in methods:
            points = [(number, mean(runs, column(number))) for number in numbers]
            lines[runs[0].label] = [(number, accuracy) for number, accuracy in points if accuracy is not None]
        plot_lines(axis, lines, xlabel, title)
        shown = [x for points in lines.values() for x, _ in points]
        axis.set_xticks(sorted(set(shown)))
    # Fewer steps, to the right, take less time.
    steps_axis.invert_xaxis()
    half_axis.set_xlim(6.5, 0.5)
    steps_axis.set_ylabel("top-1 accuracy, %")
    figure.legend(*steps_axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the table, and plot the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    args = parser.parse_args()

    methods = read_methods(args.folder, args.methods)
    print(table(methods))
    if args.picture:
        picture(methods, args.picture)


if __name__ == "__main__":
    main()
