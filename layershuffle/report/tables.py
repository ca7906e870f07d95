"""Results as tables, for the terminal and for Markdown."""

from collections.abc import Sequence
from statistics import fmean

from rich import box
from rich.table import Table

from layershuffle.results import Results, Score, Summary, summarise

Rows = list[list[str]]
Group = tuple[object, ...]


def percent(summary: Summary) -> str:
    """``95.13 (0.42)``: mean and standard deviation in percent, as the LayerShuffle paper prints them."""
    spread = "" if summary.std is None else f" ({100 * summary.std:.2f})"
    return f"{100 * summary.mean:.2f}{spread}"


def full_depth(results: Results) -> tuple[list[str], Rows]:
    """One model: everything measured for each group of orders but the pruned ones."""
    predicts = any(score.position_accuracy is not None for score in results.scores)
    rows = []
    for group, scores in results.groups().items():
        if group[0] == "pruned":
            continue
        top1 = summarise(score.top1 for score in scores)
        losses = [score.loss for score in scores if score.loss is not None]
        row = [_name(group), str(top1.n), percent(top1), f"{100 * top1.min:.2f}", f"{100 * top1.max:.2f}"]
        row.append("" if top1.ci95 is None else f"{100 * top1.ci95:.2f}")
        row.append(f"{100 * summarise(score.top5 for score in scores).mean:.2f}")
        row.append(f"{summarise(losses).mean:.4f}" if len(losses) == len(scores) else "infinite")
        if predicts:
            right = [score.position_accuracy for score in scores if score.position_accuracy is not None]
            row.append(f"{100 * summarise(right).mean:.2f}" if right else "")
        rows.append(row)
    return ["order", "n", "top-1 %", "min", "max", "±95%", "top-5", "loss", *["pos. %"] * predicts], rows


def by_kept(results: Results) -> tuple[list[str], Rows]:
    """One model: top-1 accuracy of the pruned orders, one row a strategy, one column a number of layers kept."""
    pruned = {group[1:]: scores for group, scores in results.groups().items() if group[0] == "pruned"}
    kept = sorted({k for k, *_ in pruned})
    rows = []
    for rest in dict.fromkeys(group[1:] for group in pruned):
        cells = [pruned.get((k, *rest)) for k in kept]
        rows.append([_strategy(*rest)] + [percent(summarise(s.top1 for s in c)) if c else "" for c in cells])
    return ["layers kept", *map(str, kept)], rows


def comparison(several: Sequence[Results]) -> tuple[list[str], Rows]:
    """Methods side by side, shaped like table 1 of arXiv 2407.04513: top-1 in percent, mean and standard deviation.

    The deviation is over the seeds of a method, or over the orders where each was run with one seed.
    """
    columns: dict[str, list[dict[Group, list[Score]]]] = {}
    for results in several:
        columns.setdefault(results.label, []).append(results.groups())
    one_seed = all(len(runs) == 1 for runs in columns.values())

    def cell(group: Group, runs: list[dict[Group, list[Score]]]) -> str:
        found = [[score.top1 for score in groups[group]] for groups in runs if group in groups]
        if not found:
            return "missing"
        return percent(summarise(found[0] if one_seed else map(fmean, found)))

    groups = dict.fromkeys(group for runs in columns.values() for groups in runs for group in groups)
    return ["top-1 %", *columns], [
        [_name(group), *(cell(group, runs) for runs in columns.values())] for group in groups
    ]


def terminal(header: list[str], rows: Rows, title: str = "") -> Table:
    """A table for rich's console that fits 80 columns where it can."""
    table = Table(
        title=title, title_justify="left", title_style="bold underline", box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    for column, name in enumerate(header):
        table.add_column(name.replace("-", "-\n") if len(name) > 12 else name, justify="right" if column else "left")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(header: list[str], rows: Rows) -> str:
    """A Markdown table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _name(group: Group) -> str:
    protocol, *variant = group
    if protocol == "pruned":
        kept, *rest = variant
        return f"keep {kept} {_strategy(*rest)}"
    return ", ".join(map(str, group))


def _strategy(strategy: object, sequence: object) -> str:
    return f"{strategy}, shuffled" if sequence == "random" else str(strategy)
