"""Makes the tables and the picture of docs/width.md from results files.

    python docs/width.py docs/results/width/glyphs baseline layershuffle --picture docs/results/width/glyphs.png

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


TABLES: dict[str, dict[str, Column]] = {
    "in steps": {
        "base order": ("sequential", {}),
        **{f"in {steps}": in_steps(steps, "random") for steps in STEPS},
    },
    "in flight": {f"{running} in flight": in_flight(running, "random") for running in IN_FLIGHT},
    "half left out": {
        "20% dead": ("failing", {"dead": "20%"}),
        "30% dead": ("failing", {"dead": "30%"}),
        "50% dead": ("failing", {"dead": "50%"}),
        **{f"6 layers in {steps}": in_steps(steps, "random, half left out") for steps in (6, 4, 3, 2)},
        "6 layers, 4 in flight": in_flight(4, "random, half left out"),
    },
}


def scores(run: Results, column: Column) -> list[Score]:
    """The scores of a run in the orders of a column."""
    protocol, variant = column
    return [score for score in run.scores if score.protocol == protocol and score.variant.items() >= variant.items()]


def mean(runs: list[Results], column: Column) -> float | None:
    """Top-1 over the runs, in percent; None if nothing was scored there."""
    accuracies = [100 * score.top1 for run in runs for score in scores(run, column)]
    return fmean(accuracies) if accuracies else None


def table(methods: list[list[Results]], columns: dict[str, Column]) -> str:
    """A Markdown table with a row for each method."""
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
    """Print the tables, and plot the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--picture", type=Path, metavar="FILE")
    args = parser.parse_args()

    methods = read_methods(args.folder, args.methods)
    for title, columns in TABLES.items():
        print(f"## {title}\n\n{table(methods, columns)}\n")
    if args.picture:
        picture(methods, args.picture)


if __name__ == "__main__":
    main()
