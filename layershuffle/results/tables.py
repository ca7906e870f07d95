"""Results as tables, for the terminal, for Markdown and as CSV."""

import csv
import io
import textwrap
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rich import box
from rich.table import Table

from layershuffle.orders.protocols import PROTOCOLS, Protocol
from layershuffle.results.estimates import Estimate, estimate, summarise
from layershuffle.results.measures import ByClassCounts, EarlyExits, OrderCounts, Pruning
from layershuffle.results.record import Results

Rows = list[list[str]]
Group = tuple[object, ...]
SEQUENCES = {"random": "shuffled", "per batch": "shuffled per batch"}
"""What tables call the sequences in which "pruned" runs the layers that are kept, but for the original one."""

MATRIX = 100
"""Up to so many classes have a confusion matrix; of more classes the most frequent pairs are listed."""

ONE_SEED = (
    "± is half the width of a 95% interval over test images and, where several random orders ran, over these. It says "
    "nothing of other training seeds. Where each batch ran in a new order, one model doesn't tell the interval."
)
SEVERAL_SEEDS = "± is half the width of a 95% interval over training seeds, random orders and test images."


def percent(found: Estimate | None) -> str:
    """``95.13 ± 0.42``: a mean in percent with half the width of its 95% interval, or "missing"."""
    if found is None:
        return "missing"
    return f"{100 * found.mean:.2f}" + ("" if found.ci95 is None else f" ± {100 * found.ci95:.2f}")


def meaning(seeds: Mapping[str, int]) -> str:
    """What ± stands for in a table of methods, each with this number of seeds."""
    text = ONE_SEED
    if max(seeds.values()) > 1:
        single = ", ".join(method for method, count in seeds.items() if count == 1)
        text = SEVERAL_SEEDS
        text += f" Of {single} there is only one seed, and the interval leaves seeds out." if single else ""
    if len(seeds) > 1:
        text += " All methods have the same test images: differences between them are more certain than ± says."
    return text


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
    """One model: every table that its results fill, by name: "orders", each protocol with columns, and so on."""
    found = {"orders": full_depth(results)}
    found |= {protocol.name: grid(results, protocol) for protocol in shown(results) if protocol.columns}
    found["prune"] = pruning(results)
    found["early exit"] = early_exit(results)
    found["classes"] = classes(results)
    return {name: table for name, table in found.items() if table[1]}


def full_depth(results: Results) -> tuple[list[str], Rows]:
    """One model: everything measured for each group of orders, but those of protocols with columns or a matrix."""
    elsewhere = {protocol.name for protocol in shown(results) if protocol.columns or protocol.figure == "matrix"}
    predicts = any(score.position_accuracy is not None for score in results.scores)
    chooses = any(score.chosen is not None for score in results.scores)
    header = ["order", "n", "top-1 %", "std", "min", "max", "top-5", "loss", "ECE %"]
    header += ["pos. %"] * predicts + ["chosen %"] * chooses
    rows = []
    for group, scores in results.groups().items():
        if group[0] not in elsewhere:
            top1 = summarise(score.top1 for score in scores)
            losses = [score.loss for score in scores if score.loss is not None]
            calibration = [score.ece for score in scores if score.ece is not None]
            right = [score.position_accuracy for score in scores if score.position_accuracy is not None]
            numbers = [top1.std, top1.min, top1.max, fmean(score.top5 for score in scores)]
            row = [
                name_of(group),
                str(top1.n),
                percent(estimate([scores])),
                *("" if n is None else f"{100 * n:.2f}" for n in numbers),
            ]
            row.append(f"{fmean(losses):.4f}" if len(losses) == len(scores) else "infinite")
            row.append(f"{100 * fmean(calibration):.2f}" if calibration else "")
            row += [f"{100 * fmean(right):.2f}" if right else ""] * predicts
            row += ["" if scores[0].chosen is None else f"{100 * scores[0].chosen:.1f}"] * chooses
            rows.append(row)
    return header, rows


def grid(results: Results, protocol: Protocol) -> tuple[list[str], Rows]:
    """One model: top-1 accuracy, a column for each value of the variant's first entry, a row for each of the rest."""
    by_rest: dict[Group, dict[Any, Estimate | None]] = {}
    for (name, *variant), scores in results.groups().items():
        if name == protocol.name:
            by_rest.setdefault(tuple(variant[1:]), {})[variant[0]] = estimate([scores])
    columns = sorted({column for found in by_rest.values() for column in found})
    # 80 characters have no room for the intervals of more columns.
    text = percent if len(columns) <= 4 else lambda found: f"{100 * found.mean:.1f}"
    return [protocol.columns, *map(str, columns)], [
        [_strategy(*rest) or "top-1 %", *(text(found[column]) if column in found else "" for column in columns)]
        for rest, found in by_rest.items()
    ]


def pruning(results: Results) -> tuple[list[str], Rows]:
    """One model: the best orders of each number of layers, with time and accuracy; no rows if it wasn't pruned."""
    measured = results.measure(Pruning)
    times = measured.milliseconds if measured else {}
    rows = [
        [
            str(score.order),
            str(score.variant["kept"]),
            f"{times[int(score.variant['kept'])]:#.3g}",
            f"{100 * score.top1:.2f}",
        ]
        + ["infinite" if score.loss is None else f"{score.loss:.4f}"]
        for score in results.of("prune")
    ]
    return ["layers", "kept", "ms / image", "top-1 %", "loss"], rows


def early_exit(results: Results) -> tuple[list[str], Rows]:
    """One model: accuracy against the mean number of layers run, if all images stop together and if each has its own.

    There are no rows if early exit wasn't measured.
    """
    measure = results.measure(EarlyExits)
    exits = measure.exits if measure else []
    together = results.of("pruned", strategy="first", sequence="original") if exits else []
    found = [(f"all after {score.variant['kept']}", score.variant["kept"], score.top1) for score in together]
    for measured in exits:
        words = "probability above" if measured.rule == "confidence" else "steps without change:"
        found.append((f"{words} {measured.threshold}", measured.layers, measured.top1))
    rows = [[stop, f"{layers:.2f}", f"{100 * top1:.2f}"] for stop, layers, top1 in found]
    return ["stop", "layers run", "top-1 %"], rows


def class_names(results: Results) -> list[str]:
    """What each class is called: its name where the data has names, else its number."""
    return results.data.classes or list(map(str, range(len(_images(results)))))


def _images(results: Results) -> list[int]:
    counts = results.measure(ByClassCounts)
    return counts.images if counts else []


def by_class(results: Results) -> dict[str, OrderCounts]:
    """What was counted by class, by the name of the kind of order."""
    counts = results.measure(ByClassCounts)
    counted = counts.orders if counts else []
    return {name_of((orders.protocol, *orders.variant.values())): orders for orders in counted}


def classes(results: Results) -> tuple[list[str], Rows]:
    """One model: the accuracy of each class, and what it is mistaken for most often. The lowest accuracies come first.

    There are no rows if the images weren't counted by class.
    """
    counted = by_class(results)
    if not counted:
        return [], []
    names, header = class_names(results), ["class", "images"]
    found: dict[int, tuple[list[float], list[str]]] = {
        index: ([], [names[index], str(images)]) for index, images in enumerate(_images(results)) if images
    }
    for group, orders in counted.items():
        header += [group, "taken for"]
        mistaken = {true: (predicted, count) for true, predicted, count in reversed(orders.confused)}
        for index, (accuracies, row) in found.items():
            images = orders.samples * int(row[1])
            accuracies.append(orders.right[index] / images)
            row.append(f"{100 * accuracies[-1]:.2f}")
            predicted, count = mistaken.get(index, (0, 0))
            row.append(f"{names[predicted]} {100 * count / images:.0f}%" if count else "")
    return header, [row for _, row in sorted(found.values(), key=lambda pair: pair[0])]


def confusion(results: Results) -> tuple[list[str], Rows]:
    """One model: for each kind of order how many images of each class (row) were taken for each class (column).

    Of more classes than MATRIX there is a row for each of the most frequent mistakes instead.
    """
    names, counted = class_names(results), by_class(results).items()
    if len(names) > MATRIX:
        return ["order", "class", "taken for", "images"], [
            [group, names[true], names[predicted], str(images)]
            for group, orders in counted
            for true, predicted, images in orders.confused
        ]
    return ["order", "class", *names], [
        [group, name, *map(str, row)] for group, orders in counted for name, row in zip(names, orders.matrix())
    ]


def terminal(header: list[str], rows: Rows, title: str = "") -> Table:
    """A table for rich's console that fits 80 columns where it can."""
    table = Table(
        title=title, title_justify="left", title_style="bold underline", box=box.SIMPLE_HEAD, padding=0, show_edge=False
    )
    for column, name in enumerate(header):
        # Of the cells only those of the first column wrap, which may hold a long order.
        table.add_column(textwrap.fill(name, 13), justify="right" if column else "left", no_wrap=column > 0)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(header: list[str], rows: Rows) -> str:
    """A Markdown table."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_csv(header: list[str], rows: Rows) -> str:
    """The content of a CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()


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
    words[1:2] = [SEQUENCES.get(word, word) for word in words[1:2] if word != "original"]
    return ", ".join(words)
