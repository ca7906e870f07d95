"""Makes the tables and the pictures of docs/findings/real_backbone.md from results files, and puts them beside these.

    python results/real_backbone.py results/real_backbone

The argument is a folder of results, SETUP/METHOD/SEED/results.json.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beyond_the_paper import read_methods
from matplotlib.figure import Figure
from width import Column, in_steps, mean, scores

from layershuffle.results import Results, estimate
from layershuffle.results.figures.drawing import COLOURS
from layershuffle.results.tables import markdown, percent

COLUMNS: dict[str, Column] = {
    "base order": ("sequential", {}),
    "any order": ("arbitrary", {"reading": "fixed"}),
    "in 4 steps": in_steps(4, "random"),
    "in 2": in_steps(2, "random"),
    "all at once": in_steps(1, "random"),
    "half dead": ("failing", {"dead": "50%"}),
    "6 of 12, in 2": in_steps(2, "random, half left out"),
}

MOST_TELLING = ("base order", "any order", "in 4 steps", "all at once", "half dead")
"""The columns of the tables of one seed."""


@dataclass(frozen=True)
class Training:
    """A training of the experiment.

    Attributes:
        name: what the page calls it.
        setup: its setup in configs/experiment/real_backbone.yaml.
        method: its method there.
        updates: its layer executions, in updates at full depth.
    """

    name: str
    setup: str
    method: str
    updates: int


EMOJI = (
    Training("baseline", "emoji", "baseline", 232),
    Training("LayerShuffle", "emoji", "layershuffle", 232),
    Training("any_width", "emoji", "any_width", 232),
    Training("baseline", "emoji_small_batches", "baseline", 952),
    Training("LayerShuffle", "emoji_small_batches", "layershuffle", 952),
    Training("any_width", "emoji_small_batches", "any_width", 952),
    Training("LayerShuffle", "emoji_longer", "layershuffle", 2856),
    Training("any_width", "emoji_longer", "any_width", 2856),
)
"""How accuracy depends on the number of updates: a table and most of the picture."""
BETTER = (
    Training("LayerShuffle, Muon", "emoji_muon", "layershuffle", 232),
    Training("LayerShuffle, Muon", "at_the_end", "muon", 580),
    Training("LayerShuffle, Muon, three designs", "emoji_muon_designs", "layershuffle", 880),
    Training("any_width, Muon, three designs", "emoji_muon_designs", "any_width", 880),
    Training("baseline, three designs", "at_the_end", "baseline_designs", 704),
)
"""What the picture shows besides: the checkpoints that are the best with as many updates; some are the last ones."""
OTHER_METHODS = (
    Training("LayerShuffle", "emoji_small_batches", "layershuffle", 952),
    Training("any_width", "emoji_small_batches", "any_width", 952),
    Training("growing_depth", "emoji_others", "growing_depth", 952),
    Training("growing_width", "emoji_others", "growing_width", 952),
    Training("random_subset", "emoji_others", "random_subset", 952),
    Training("LayerShuffle-position", "emoji_others", "layershuffle_position", 952),
    Training("LayerShuffle-predict", "emoji_others", "layershuffle_predict", 952),
    Training("LayerDrop", "emoji_others", "layerdrop", 952),
    Training("LayerShuffle, LoRA", "emoji_others", "lora", 952),
    Training("LayerShuffle, norms and head", "emoji_others", "norms", 952),
    Training("LayerShuffle, norms, LayerScale, head", "emoji_others", "norms_and_layer_scales", 952),
    Training("LayerShuffle, teacher", "emoji_others", "teacher", 952),
)
LIMITS = (
    Training("AdamW", "emoji", "layershuffle", 232),
    Training("Muon", "emoji_muon", "layershuffle", 232),
    Training("Muon, selected by loss", "emoji_muon_longer", "layershuffle", 580),
    Training("Muon, last checkpoint", "at_the_end", "muon", 580),
    Training("AdamW, batches of 8, selected by loss", "emoji_longer", "layershuffle", 2856),
    Training("AdamW, batches of 8, last checkpoint", "at_the_end", "adamw", 2856),
    Training("AdamW, batches of 8, three designs", "emoji_designs", "layershuffle", 2832),
    Training("Muon, three designs", "emoji_muon_designs", "layershuffle", 880),
    Training("any_width, Muon, three designs", "emoji_muon_designs", "any_width", 880),
    Training("baseline, AdamW", "emoji", "baseline", 232),
    Training("baseline, AdamW, three designs, selected by loss", "emoji_designs", "baseline", 704),
    Training("baseline, AdamW, three designs, last checkpoint", "at_the_end", "baseline_designs", 704),
)
"""What limits LayerShuffle, which all are that name no method, in batches of 32 where no other size is named.

The loss on held-out images selects the checkpoint, unless it is the last one.

With Muon and three designs the accuracy in random orders selects it; LayerShuffle's is the last one, too.
"""
PHOTOGRAPHS = (
    Training("baseline", "stamps", "baseline", 160),
    Training("LayerShuffle", "stamps", "layershuffle", 720),
    Training("any_width", "stamps", "any_width", 720),
)
PLOTTED = ("base order", "any order", "half dead")
"""The kinds of order in the pictures."""
MARKERS = ("s", "o", "X")
"""What marks each of them."""
HEAD = """# A real backbone: all accuracies

Top-1 accuracy in percent, with half of the 95% interval over test images, orders and, in the first table, seeds. The
others are of seed 0. [A real backbone](../../docs/findings/real_backbone.md) says what was trained.

"""
TICKS = (250, 500, 1000, 2000)
"""The numbers of updates at the axis of the picture."""


def read_trainings(folder: Path, trainings: Iterable[Training]) -> dict[Training, list[Results]]:
    """The results of each training that is there, a file for each seed."""
    found = {}
    for training in trainings:
        (runs,) = read_methods(folder / training.setup, [training.method])
        if runs:
            found[training] = runs
    return found


def of_seed_0(trainings: dict[Training, list[Results]]) -> dict[Training, list[Results]]:
    """The same trainings with the results of their first seed alone, which all of them have."""
    return {training: [run for run in runs if run.model.seed == 0] for training, runs in trainings.items()}


def table(trainings: dict[Training, list[Results]], columns: Sequence[str]) -> str:
    """A Markdown table with a row for each training and a column for each of these kinds of order.

    The updates and the seeds are left out where all trainings have as many.
    """
    updates = {training.updates for training in trainings}
    seeds = {len(runs) for runs in trainings.values()}
    head = [""]
    if len(updates) > 1:
        head.append("updates")
    if seeds != {1}:
        head.append("seeds")

    rows = []
    for training, runs in trainings.items():
        row = [training.name]
        if len(updates) > 1:
            row.append(f"{training.updates:,}")
        if seeds != {1}:
            row.append(str(len(runs)))
        accuracies = [percent(estimate([scores(run, COLUMNS[name]) for run in runs])) for name in columns]
        rows.append([*row, *accuracies])
    return markdown([*head, *columns], rows)


def plot_updates(trainings: dict[Training, list[Results]], path: Path) -> None:
    """Accuracy against the number of updates, a line for each method in each of three kinds of order."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, len(PLOTTED), sharey=True)
    methods = list(dict.fromkeys(training.name for training in trainings))
    for axis, kind in zip(axes, PLOTTED):
        for method, colour in zip(methods, COLOURS):
            of_method = {training: runs for training, runs in trainings.items() if training.name == method}
            updates = [training.updates for training in of_method]
            accuracies = [mean(runs, COLUMNS[kind]) for runs in of_method.values()]
            axis.plot(updates, accuracies, "o-", color=colour, label=method)
        axis.set_title(kind)
        axis.set_xscale("log")
        axis.set_xticks(TICKS, [f"{updates:,}" for updates in TICKS])
        axis.minorticks_off()
        axis.set_xlabel("updates")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("top-1 accuracy, %")
    axes[0].set_ylim(bottom=0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def plot_side_by_side(trainings: dict[Training, list[Results]], path: Path) -> None:
    """A row for each training, and in it the accuracies in three kinds of order with their intervals."""
    figure = Figure(figsize=(9, 0.9 + 0.36 * len(trainings)), layout="constrained")
    axis = figure.subplots()
    rows = range(len(trainings))
    for kind, marker, colour, offset in zip(PLOTTED, MARKERS, COLOURS, (-0.2, 0, 0.2)):
        estimates = [estimate([scores(run, COLUMNS[kind]) for run in runs]) for runs in trainings.values()]
        accuracies = [100 * found.mean for found in estimates]
        intervals = [100 * found.ci95 for found in estimates]
        heights = [row + offset for row in rows]
        axis.errorbar(accuracies, heights, xerr=intervals, fmt=marker, color=colour, elinewidth=0.8, label=kind)
    names = [training.name for training in trainings]
    if len({training.updates for training in trainings}) > 1:
        names = [f"{training.name} ({training.updates:,} updates)" for training in trainings]
    axis.set_yticks(rows, names)
    # The first training is at the top, as in a table.
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.set_xlabel("top-1 accuracy, %")
    axis.grid(axis="x", color="#dddddd", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=len(PLOTTED), frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Write the tables and the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder

    emoji = read_trainings(folder, EMOJI)
    several_seeds = {training: runs for training, runs in emoji.items() if len(runs) > 1}
    limits = of_seed_0(read_trainings(folder, LIMITS))
    others = of_seed_0(read_trainings(folder, OTHER_METHODS))
    photographs = of_seed_0(read_trainings(folder, PHOTOGRAPHS))
    tables = {
        "Fine-tuned on emoji, several seeds": table(several_seeds, [*COLUMNS]),
        "How many updates any order needs": table(of_seed_0(emoji), MOST_TELLING),
        "What limits LayerShuffle": table(limits, MOST_TELLING),
        "Other methods, 952 updates": table(others, MOST_TELLING),
        "Photographs": table(photographs, MOST_TELLING),
    }
    parts = [f"## {title}\n\n{content}" for title, content in tables.items()]
    (folder / "tables.md").write_text(HEAD + "\n".join(parts), "utf-8")

    plot_updates(of_seed_0(emoji | read_trainings(folder, BETTER)), folder / "updates.png")
    plot_side_by_side(limits, folder / "limits.png")
    plot_side_by_side(others, folder / "methods.png")


if __name__ == "__main__":
    main()
