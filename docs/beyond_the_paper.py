"""Makes the tables and the picture of docs/beyond_the_paper.md from results files.

    python docs/beyond_the_paper.py docs/results/beyond_the_paper/glyphs baseline layershuffle

The first argument is a folder METHOD/SEED/results.json; the methods to show follow, by default all. With ``--picture
FILE``, accuracy against the probability that a layer is dead is drawn, too.
"""

import argparse
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

from layershuffle.results.record import Estimate, Results, Score, estimate
from layershuffle.results.tables import markdown, percent

COLUMNS = {
    "sequential": ("sequential", {}),
    "arbitrary": ("arbitrary", {"reading": "fixed"}),
    "6 of 12": ("pruned", {"kept": 6, "strategy": "random", "sequence": "random"}),
    "20% dead": ("failing", {"dead": "20%"}),
    "30% dead": ("failing", {"dead": "30%"}),
    "50% dead": ("failing", {"dead": "50%"}),
}


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


def main() -> None:
    """Print a table, and draw the picture if one is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("methods", nargs="*")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    methods = args.methods or sorted(path.name for path in args.folder.iterdir() if path.is_dir())
    found = {
        method: [Results.load(path) for path in sorted((args.folder / method).glob("seed*/results.json"))]
        for method in methods
    }
    rows = [
        [f"`{runs[0].label}`", str(len(runs)), *(percent(accuracy(runs, column)) for column in COLUMNS)]
        + [f"{calibration(runs, 'sequential'):.1f} / {calibration(runs, 'arbitrary'):.1f}"]
        for runs in found.values()
    ]
    print(markdown(["", "seeds", *COLUMNS, "ECE, sequential / arbitrary"], rows))
    if args.picture:
        figure = Figure(figsize=(7, 4), layout="constrained")
        axis = figure.subplots()
        dead = {0: "arbitrary", 20: "20% dead", 30: "30% dead", 50: "50% dead"}
        for runs, marker in zip(found.values(), "osD^vP*X<>"):
            means = [100 * fmean(score.top1 for run in runs for score in scores(run, name)) for name in dead.values()]
            axis.plot([*dead], means, marker=marker, markersize=5, label=runs[0].label)
        axis.set(xlabel="each layer is dead with this probability, %", ylabel="top-1 accuracy, %", ylim=(0, 100))
        axis.set_xticks([*dead])
        axis.grid(axis="y", alpha=0.3)
        figure.legend(loc="outside right center", frameon=False)
        figure.savefig(args.picture, dpi=150)


if __name__ == "__main__":
    main()
