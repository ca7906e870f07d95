"""Makes the tables and the picture of docs/findings/uncertainty.md from the files of results/uncertainty_scores.py.

    python results/uncertainty.py results/uncertainty/glyphs --picture results/uncertainty/glyphs.png

The first argument is a folder METHOD-SEED.json. The table has the means over these models, and behind them by how much
a way differs from one order: the mean and half of the 95% interval of the differences of each model.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layershuffle.results import half_width
from layershuffle.results.tables import markdown

Entry = dict[str, Any]
"""What a file says of one way on one kind of pictures."""

SIMPLEST = "one order"
EIGHTY = 15
"""The index of 80% among the coverages of the files, which are 5%, 10% and so on."""

COLUMNS: dict[str, Callable[[Entry], float]] = {
    "top-1 %": lambda entry: 100 * entry["top1"],
    "AUROC %": lambda entry: 100 * entry["probability"]["auroc"],
    "by disagreement": lambda entry: 100 * entry["mutual information"]["auroc"],
    "mean risk %": lambda entry: 100 * entry["probability"]["aurc"],
    "surest 80%": lambda entry: 100 * entry["probability"]["accuracy"][EIGHTY],
    "ECE %": lambda entry: 100 * entry["ece"],
    "with temperature": lambda entry: 100 * entry["ece_with_temperature"],
}

Models = list[dict[tuple[str, str], Entry]]
"""The entries of each model by (pictures, way)."""


def read(folder: Path) -> Models:
    """The models of a folder."""
    models: Models = []
    for path in sorted(folder.glob("*.json")):
        scores = json.loads(path.read_text(encoding="utf-8"))["scores"]
        models.append({(entry["pictures"], entry["method"]): entry for entry in scores})
    if not models:
        raise SystemExit(f"{folder} has no files of results/uncertainty_scores.py")
    return models


def cell(models: Models, pictures: str, method: str, value: Callable[[Entry], float]) -> str:
    """The mean over the models, and how it differs from one order."""
    values = [value(model[pictures, method]) for model in models]
    text = f"{fmean(values):.1f}"
    if method == SIMPLEST:
        return text
    differences = [value(model[pictures, method]) - value(model[pictures, SIMPLEST]) for model in models]
    text += f" ({fmean(differences):+.1f}"
    if len(differences) > 1:
        half = half_width((variance(differences) / len(differences), len(differences) - 1))
        text += f" ± {half:.1f}"
    return f"{text})"


def table(models: Models) -> str:
    """A Markdown table with a row for each way on each kind of pictures."""
    rows = []
    for pictures, method in models[0]:
        row = [pictures, method, str(models[0][pictures, method]["layers"])]
        for name, value in COLUMNS.items():
            # A single pass has nothing to disagree with.
            if method == SIMPLEST and name == "by disagreement":
                row.append("")
            elif name == "by disagreement":
                row.append(f"{fmean(value(model[pictures, method]) for model in models):.1f}")
            else:
                row.append(cell(models, pictures, method, value))
        rows.append(row)
    return markdown(["pictures", "", "layers", *COLUMNS], rows)


def faults(models: Models) -> str:
    """A Markdown table of the accuracy and, behind it, the AUROC for each fault of the corrupted pictures."""
    methods = [method for pictures, method in models[0] if pictures == "corrupted"]
    names = models[0]["corrupted", SIMPLEST]["faults"]
    rows = []
    for method in methods:
        row = [method]
        for name in names:
            scores = [model["corrupted", method]["faults"][name] for model in models]
            known = [score["auroc"] for score in scores if score["auroc"] is not None]
            row.append(f"{100 * fmean(score['top1'] for score in scores):.1f} / {100 * fmean(known):.1f}")
        rows.append(row)
    return markdown(["top-1 % / AUROC %", *names], rows)


def picture(models: Models, path: Path) -> None:
    """Plot accuracy against coverage, and the AUROC against the number of forward passes."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    clean, corrupted, passes = figure.subplots(1, 3)
    for axis, pictures in ((clean, "clean"), (corrupted, "corrupted")):
        plot_coverage(axis, models, pictures)
    clean.set_ylabel("accuracy on those that are answered, %")
    for method in [method for pictures, method in models[0] if pictures == "corrupted"]:
        points = []
        for size in models[0]["corrupted", method]["auroc_by_members"]:
            aurocs = [model["corrupted", method]["auroc_by_members"][size] for model in models]
            points.append((int(size), 100 * fmean(aurocs)))
        passes.plot(*zip(*points), "o-", markersize=4, label=method)
    passes.set(xscale="log", xlabel="forward passes", ylabel="AUROC of errors, %", title="corrupted")
    passes.set_xticks([1, 2, 5, 10, 20], labels=["1", "2", "5", "10", "20"])
    passes.minorticks_off()
    passes.grid(axis="y", alpha=0.3)
    figure.legend(*clean.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)


def plot_coverage(axis: Axes, models: Models, pictures: str) -> None:
    """Plot the accuracy on the most certain pictures, a line for each way."""
    for kind, method in models[0]:
        if kind != pictures:
            continue
        curves = [model[pictures, method]["probability"]["accuracy"] for model in models]
        means = [100 * fmean(values) for values in zip(*curves)]
        coverages = [100 * number / len(means) for number in range(1, len(means) + 1)]
        axis.plot(coverages, means, label=method)
    axis.set(xlabel="most certain pictures, %", title=pictures)
    axis.grid(axis="y", alpha=0.3)


def main() -> None:
    """Print the tables, and plot the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path, metavar="FILE")
    args = parser.parse_args()

    models = read(args.folder)
    print(table(models))
    print()
    print(faults(models))
    if args.picture:
        picture(models, args.picture)


if __name__ == "__main__":
    main()
