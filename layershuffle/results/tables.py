"""Results as tables, for the terminal and for Markdown."""

from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table

from layershuffle.orders.protocols import PROTOCOLS, Protocol
from layershuffle.results.record import Results, Summary, summarise

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
    """One model: every table that its results fill, by name: "orders", each protocol with columns, "early exit"."""
    found = {"orders": full_depth(results)}
    found |= {protocol.name: grid(results, protocol) for protocol in shown(results) if protocol.columns}
    found["early exit"] = early_exit(results)
    return {name: table for name, table in found.items() if table[1]}


def full_depth(results: Results) -> tuple[list[str], Rows]:
    """One model: everything measured for each group of orders, but those of protocols with columns or a matrix."""
    elsewhere = {protocol.name for protocol in shown(results) if protocol.columns or protocol.figure == "matrix"}
    predicts = any(score.position_accuracy is not None for score in results.scores)
    chooses = any(score.chosen is not None for score in results.scores)
    header = ["order", "n", "top-1 %", "min", "max", "±95%", "top-5", "loss"]
    header += ["pos. %"] * predicts + ["chosen %"] * chooses
    rows = []
    for group, scores in results.groups().items():
        if group[0] not in elsewhere:
            top1 = summarise(score.top1 for score in scores)
            losses = [score.loss for score in scores if score.loss is not None]
            right = [score.position_accuracy for score in scores if score.position_accuracy is not None]
            numbers = [top1.min, top1.max, top1.ci95, fmean(score.top5 for score in scores)]
            row = [
                name_of(group),
                str(top1.n),
                percent(top1),
                *("" if n is None else f"{100 * n:.2f}" for n in numbers),
            ]
            row.append(f"{fmean(losses):.4f}" if len(losses) == len(scores) else "infinite")
            row += [f"{100 * fmean(right):.2f}" if right else ""] * predicts
            row += ["" if scores[0].chosen is None else f"{100 * scores[0].chosen:.1f}"] * chooses
            rows.append(row)
    return header, rows


def grid(results: Results, protocol: Protocol) -> tuple[list[str], Rows]:
    """One model: top-1 accuracy, a column for each value of the variant's first entry, a row for each of the rest."""
    by_rest: dict[Group, dict[Any, Summary]] = {}
    for (name, *variant), scores in results.groups().items():
        if name == protocol.name:
            by_rest.setdefault(tuple(variant[1:]), {})[variant[0]] = summarise(score.top1 for score in scores)
    columns = sorted({column for found in by_rest.values() for column in found})
    # 80 characters have no room for the deviations of more columns; they are in the results file.
    text = percent if len(columns) <= 4 else lambda top1: f"{100 * top1.mean:.1f}"
    return [protocol.columns, *map(str, columns)], [
        [_strategy(*rest) or "top-1 %", *(text(found[column]) if column in found else "" for column in columns)]
        for rest, found in by_rest.items()
    ]


def early_exit(results: Results) -> tuple[list[str], Rows]:
    """One model: accuracy against the mean number of layers run, if all images stop together and if each has its own.

    There are no rows if early exit wasn't measured.
    """
    exits = results.measures.get("early_exit", [])
    together = results.of("pruned", strategy="first", sequence="original") if exits else []
    found = [(f"all after {score.variant['kept']}", score.variant["kept"], score.top1) for score in together]
    for measured in exits:
        words = "probability above" if measured["rule"] == "confidence" else "steps without change:"
        found.append((f"{words} {measured['threshold']}", measured["layers"], measured["top1"]))
    rows = [[stop, f"{layers:.2f}", f"{100 * top1:.2f}"] for stop, layers, top1 in found]
    return ["stop", "layers run", "top-1 %"], rows


def terminal(header: list[str], rows: Rows, title: str = "") -> Table:
    """A table for rich's console that fits 80 columns where it can."""
    table = Table(
        title=title, title_justify="left", title_style="bold underline", box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    for column, name in enumerate(header):
        name = name.replace("-", "-\n") if len(name) > 12 else name
        # Only the first column wraps, which may hold a long order.
        table.add_column(name, justify="right" if column else "left", no_wrap=column > 0)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(header: list[str], rows: Rows) -> str:
    """A Markdown table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def name_of(group: Group) -> str:
    """What tables call a group of scores, see ``Results.groups``: ``keep 3 first, shuffled``."""
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
