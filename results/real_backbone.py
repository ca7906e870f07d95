"""Makes the table and the picture of docs/findings/real_backbone.md from results files.

    python results/real_backbone.py results/real_backbone --picture results/real_backbone/emoji.png

The argument is a folder SETUP/METHOD/SEED/results.json.
"""

import argparse
from pathlib import Path

from beyond_the_paper import read_methods
from matplotlib.figure import Figure
from width import Column, in_steps, mean, scores

from layershuffle.results import Results, estimate
from layershuffle.results.figures.drawing import COLOURS
from layershuffle.results.tables import markdown, percent

COLUMNS: dict[str, Column] = {
    "base order": ("sequential", {}),
    "any order": in_steps(12, "random"),
    "in 4 steps": in_steps(4, "random"),
    "in 2": in_steps(2, "random"),
    "all at once": in_steps(1, "random"),
    "half dead": ("failing", {"dead": "50%"}),
    "6 of 12, in 2": in_steps(2, "random, half left out"),
}
TRAININGS = {
    "baseline": ("emoji", "baseline"),
    "LayerShuffle": ("emoji", "layershuffle"),
    "any_width": ("emoji", "any_width"),
    "LayerShuffle, 24 epochs": ("emoji_longer", "layershuffle"),
    "any_width, 24 epochs": ("emoji_longer", "any_width"),
}
"""The setup and the method of each training, by what the page calls it."""


def read_trainings(folder: Path) -> dict[str, list[Results]]:
    """The results of each training that is there, a file for each seed."""
    trainings = {}
    for name, (setup, method) in TRAININGS.items():
        if (folder / setup / method).is_dir():
            (trainings[name],) = read_methods(folder / setup, [method])
    return trainings


def table(trainings: dict[str, list[Results]]) -> str:
    """A Markdown table with a row for each training."""
    rows = []
    for name, runs in trainings.items():
        accuracies = [percent(estimate([scores(run, column) for run in runs])) for column in COLUMNS.values()]
        rows.append([name, str(len(runs)), *accuracies])
    return markdown(["", "seeds", *COLUMNS], rows)


def picture(trainings: dict[str, list[Results]], path: Path) -> None:
    """Bars of the accuracy in each kind of order, one for each training."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axis = figure.subplots()
    thickness = 0.84 / len(trainings)
    for index, (name, runs) in enumerate(trainings.items()):
        # The bars of a kind of order stand beside each other, centred on its tick.
        shift = (index - (len(trainings) - 1) / 2) * thickness
        places = [place + shift for place in range(len(COLUMNS))]
        heights = [mean(runs, column) or 0 for column in COLUMNS.values()]
        axis.bar(places, heights, thickness, color=COLOURS[index], label=name)
    axis.set_xticks(range(len(COLUMNS)), list(COLUMNS))
    axis.set_ylabel("top-1 accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(trainings), frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the table, and plot the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    args = parser.parse_args()

    trainings = read_trainings(args.folder)
    print(table(trainings))
    if args.picture:
        picture(trainings, args.picture)


if __name__ == "__main__":
    main()
