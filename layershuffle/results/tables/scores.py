"""The scores of one model as tables."""

from statistics import fmean
from typing import Any

from layershuffle.orders.protocols import PROTOCOLS, Protocol
from layershuffle.results.estimates import Estimate, estimate, summarise
from layershuffle.results.record import Results
from layershuffle.results.score import Score
from layershuffle.results.table import Rows, Table
from layershuffle.results.tables.wording import name_of, percent, strategy_of

MAX_INTERVALS = 4
"""Of more columns than this, 80 characters have no room for the intervals."""


def of(results: Results) -> dict[str, Table]:
    """Every table that the results fill, by name: "orders", each protocol with columns, and those of the measures."""
    tables = {"orders": full_depth(results)}
    for protocol in shown(results):
        if protocol.columns:
            tables[protocol.name] = grid(results, protocol)
    for measure in results.measures:
        tables.update(measure.tables(results))
    return {name: table for name, table in tables.items() if table.rows}


def shown(results: Results) -> list[Protocol]:
    """The protocols of the scores, as they are registered.

    One that isn't, such as a user's own, gets columns if the first entry of its variants is a number.
    """
    variants: dict[str, list[dict[str, Any]]] = {}
    for score in results.scores:
        variants.setdefault(score.protocol, []).append(score.variant)

    protocols = [protocol for name, protocol in PROTOCOLS.items() if name in variants]
    for name, of_protocol in variants.items():
        if name not in PROTOCOLS:
            # The module that registered it when the results were made may not be imported now.
            columns = _columns_of(of_protocol)
            protocols.append(Protocol(name, lambda: iter(()), columns=columns))
    return protocols


def _columns_of(variants: list[dict[str, Any]]) -> str:
    """What the columns of a protocol's table are called, judging by its variants; empty if it has rows alone."""
    # A score without any entry would be in no column.
    if not all(variants):
        return ""
    # The first variant stands for all.
    key, value = next(iter(variants[0].items()))
    return key if isinstance(value, (int, float)) else ""


def full_depth(results: Results) -> Table:
    """Everything measured for each group of orders, but those of protocols with columns or a matrix."""
    # A grid or a matrix shows these better than hundreds of rows.
    elsewhere = {protocol.name for protocol in shown(results) if protocol.columns or protocol.figure == "matrix"}
    header = ["order", "n", f"{results.quality} %", "std", "min", "max"]
    header += ["F1 %", "loss"] if results.has_several_labels else ["top-5", "loss", "ECE %"]
    # Most models neither predict positions nor choose orders, and 80 columns are few.
    predicts = any(score.position_accuracy is not None for score in results.scores)
    chooses = any(score.chosen is not None for score in results.scores)
    if predicts:
        header.append("pos. %")
    if chooses:
        header.append("chosen %")
    rows = []
    for group, scores in results.groups().items():
        if group[0] in elsewhere:
            continue
        row = [name_of(group), *_numbers(scores)]
        if predicts:
            row.append(_mean_percent([score.position_accuracy for score in scores]))
        if chooses:
            chosen = scores[0].chosen
            row.append("" if chosen is None else f"{100 * chosen:.1f}")
        rows.append(row)
    return Table(header, rows)


def _numbers(scores: list[Score]) -> list[str]:
    """The cells from "n" to the loss, or to "ECE %" where each image has one label."""
    quality = summarise(score.quality for score in scores)
    spread = "" if quality.std is None else f"{100 * quality.std:.2f}"
    # A loss of None was not finite, and neither is a mean with it.
    losses = [score.loss for score in scores if score.loss is not None]
    loss = f"{fmean(losses):.4f}" if len(losses) == len(scores) else "infinite"
    cells = [
        str(quality.n),
        percent(estimate([scores])),
        spread,
        f"{100 * quality.min:.2f}",
        f"{100 * quality.max:.2f}",
    ]
    if scores[0].map is not None:
        return [*cells, _mean_percent([score.f1 for score in scores]), loss]
    return [
        *cells,
        _mean_percent([score.top5 for score in scores]),
        loss,
        _mean_percent([score.ece for score in scores]),
    ]


def _mean_percent(shares: list[float | None]) -> str:
    """The mean of the shares that are known, in percent; empty if none is."""
    known = [share for share in shares if share is not None]
    return f"{100 * fmean(known):.2f}" if known else ""


def grid(results: Results, protocol: Protocol) -> Table:
    """The scores, a column for each value of the variant's first entry, a row for each of the rest."""
    # By what the rows stand for, and then by the number that the columns stand for.
    by_rest: dict[tuple[object, ...], dict[Any, Estimate | None]] = {}
    for (name, *variant), scores in results.groups().items():
        if name == protocol.name:
            first, *others = variant
            by_rest.setdefault(tuple(others), {})[first] = estimate([scores])

    # Not every strategy has a score in every column: a cell may stay empty.
    present: set[Any] = set()
    for cells in by_rest.values():
        present.update(cells)
    columns = sorted(present, key=_numbers_first)
    rows: Rows = []
    for rest, cells in by_rest.items():
        # Where the first entry is all that the variant has, the only row says what the numbers are.
        row = [strategy_of(list(rest)) or f"{results.quality} %"]
        for column in columns:
            accuracy = cells.get(column)
            if accuracy is None:
                row.append("")
            elif len(columns) <= MAX_INTERVALS:
                row.append(percent(accuracy))
            else:
                row.append(f"{100 * accuracy.mean:.1f}")
        rows.append(row)
    return Table([protocol.columns, *map(str, columns)], rows)


def _numbers_first(value: object) -> tuple[bool, object]:
    """The key that sorts numbers by size, and texts after them: Python can't compare the one with the other."""
    return isinstance(value, str), value
