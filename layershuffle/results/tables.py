"""Results as tables, for the terminal and for Markdown."""

from collections.abc import Container, Sequence
from statistics import fmean

from rich import box
from rich.table import Table

from layershuffle.orders.protocols import PROTOCOLS, Protocol
from layershuffle.results.record import Results, Score, Summary, summarise

Rows = list[list[str]]
Group = tuple[object, ...]


def percent(summary: Summary) -> str:
    """``95.13 (0.42)``: mean and standard deviation in percent, as the LayerShuffle paper prints them."""
    spread = "" if summary.std is None else f" ({100 * summary.std:.2f})"
    return f"{100 * summary.mean:.2f}{spread}"


def shown(results: Results) -> list[Protocol]:
    """The protocols of the scores, as they are registered.

    One that isn't, such as a user's own, gets columns if the first entry of its variants is a number.
    """
    first = {score.protocol: score.variant for score in reversed(results.scores)}
    known = [protocol for name, protocol in PROTOCOLS.items() if name in first]
    for name, variant in first.items():
        if name not in PROTOCOLS:
            key, value = next(iter(variant.items()), ("", None))
            known.append(Protocol(name, lambda: iter(()), columns=key if isinstance(value, (int, float)) else ""))
    return known


def of(results: Results) -> dict[str, tuple[list[str], Rows]]:
    """One model: every table that its results fill, by name: "orders", and each protocol that has columns."""
    found = {"orders": full_depth(results)}
    found |= {protocol.name: grid(results, protocol) for protocol in shown(results) if protocol.columns}
    return {name: table for name, table in found.items() if table[1]}


def full_depth(results: Results) -> tuple[list[str], Rows]:
    """One model: everything measured for each group of orders, but those of protocols with columns or a matrix."""
    elsewhere = {protocol.name for protocol in shown(results) if protocol.columns or protocol.figure == "matrix"}
    predicts = any(score.position_accuracy is not None for score in results.scores)
    chooses = any(score.chosen is not None for score in results.scores)
    rows = []
    for group, scores in results.groups().items():
        if group[0] in elsewhere:
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
        if chooses:
            row.append("" if scores[0].chosen is None else f"{100 * scores[0].chosen:.1f}")
        rows.append(row)
    header = ["order", "n", "top-1 %", "min", "max", "±95%", "top-5", "loss"]
    return header + ["pos. %"] * predicts + ["chosen %"] * chooses, rows


def grid(results: Results, protocol: Protocol) -> tuple[list[str], Rows]:
    """One model: top-1 accuracy, a column for each value of the variant's first entry, a row for each of the rest."""
    cells = {group[1:]: scores for group, scores in results.groups().items() if group[0] == protocol.name}
    columns = sorted({column for column, *_ in cells})
    rows = []

    def cell(scores: list[Score] | None) -> str:
        top1 = summarise(score.top1 for score in scores) if scores else None
        # With more columns a terminal has no room for the deviations; they are in the results file.
        return "" if top1 is None else percent(top1) if len(columns) <= 8 else f"{100 * top1.mean:.1f}"

    for rest in dict.fromkeys(group[1:] for group in cells):
        rows.append([_strategy(*rest) or "top-1 %"] + [cell(cells.get((column, *rest))) for column in columns])
    return [protocol.columns, *map(str, columns)], rows


def comparison(several: Sequence[Results], without: Container[str] = ()) -> tuple[list[str], Rows]:
    """Methods side by side, shaped like table 1 of arXiv 2407.04513: top-1 in percent, mean and standard deviation.

    The deviation is over the seeds of a method, or over the orders where each was run with one seed. The protocols
    ``without`` are left out.
    """
    by_model: dict[str, dict[object, dict[Group, list[Score]]]] = {}
    for results in several:
        models = by_model.setdefault(results.label, {})
        model = results.model.get("sha256") or results.model.get("seed")
        models[model] = results.groups() | models.get(model, {})  # a model may have several files
    columns = {label: list(models.values()) for label, models in by_model.items()}
    one_seed = all(len(runs) == 1 for runs in columns.values())

    def cell(group: Group, runs: list[dict[Group, list[Score]]]) -> str:
        found = [[score.top1 for score in groups[group]] for groups in runs if group in groups]
        if not found:
            return "missing"
        return percent(summarise(found[0] if one_seed else map(fmean, found)))

    found = (group for runs in columns.values() for groups in runs for group in groups)
    groups = dict.fromkeys(group for group in found if group[0] not in without)
    return ["top-1 %", *columns], [
        [_name(group), *(cell(group, runs) for runs in columns.values())] for group in groups
    ]


def terminal(header: list[str], rows: Rows, title: str = "") -> Table:
    """A table for rich's console that fits 80 columns where it can."""
    table = Table(
        title=title, title_justify="left", title_style="bold underline", box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    for column, name in enumerate(header):
        name = name.replace("-", "-\n") if len(name) > 12 else name
        table.add_column(name, justify="right" if column else "left", no_wrap=column > 0)  # a long order wraps
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


def _strategy(*rest: object) -> str:
    """The rest of a variant in words; "pruned" has a sequence, original or random, in the second place."""
    words = [str(value) for value in rest]
    words[1:2] = [{"random": "shuffled"}.get(word, word) for word in words[1:2] if word != "original"]
    return ", ".join(words)
