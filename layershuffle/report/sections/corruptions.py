"""The error on each corruption of ImageNet-C, method by method."""

from functools import partial
from statistics import fmean

from layershuffle.plurals import counted
from layershuffle.report.page import Section, Table, TableCell
from layershuffle.report.sections.wording import Rows, heading, picture
from layershuffle.report.setups import SetupResults
from layershuffle.results.measures import ByCorruptionCounts
from layershuffle.results.measures.by_corruption import MCE, draw_errors

Errors = dict[str, dict[str, dict[str, float]]]
"""The errors by kind of order, method and corruption, 0 to 1."""


def corruptions(setup: SetupResults) -> Section | None:
    """A table of all methods, and bars of the same."""
    several, left_out = _scored_alike(setup)
    errors = _errors(several)
    if not errors or ByCorruptionCounts.section is None:
        return None
    title = heading(ByCorruptionCounts.section.title, setup)
    draw = partial(draw_errors, errors)
    bars = picture(ByCorruptionCounts.picture, setup, "the same errors as bars.", draw, _data(errors))
    text = []
    if left_out:
        text.append(f"Left out: {counted(left_out, 'evaluation')} on other corruptions than the first one's.")
    return Section(title, text, [_table(errors), bars])


def _scored_alike(setup: SetupResults) -> tuple[dict[str, list[ByCorruptionCounts]], int]:
    """Each method's measures on the same corruptions, and how many on others there are besides."""
    several: dict[str, list[ByCorruptionCounts]] = {}
    first = None
    left_out = 0
    for method in setup.main_methods:
        for run in setup.runs_of(method):
            for results in run.files.values():
                counts = results.measure(ByCorruptionCounts)
                if counts is None:
                    continue
                first = first or counts
                # Only errors on the same images can be averaged and compared.
                if counts.corruptions == first.corruptions:
                    several.setdefault(method, []).append(counts)
                else:
                    left_out += 1
    return several, left_out


def _errors(several: dict[str, list[ByCorruptionCounts]]) -> Errors:
    """The errors, means over a method's models, from their measures."""
    errors: Errors = {}
    for method, of_method in several.items():
        by_order: dict[str, list[dict[str, float]]] = {}
        for counts in of_method:
            for orders in counts.orders:
                by_order.setdefault(orders.name, []).append(counts.summary(orders))
        for order, summaries in by_order.items():
            means = {name: fmean(summary[name] for summary in summaries) for name in summaries[0]}
            errors.setdefault(order, {})[method] = means
    return errors


def _table(errors: Errors) -> Table:
    """A row for each corruption, and in each cell the error in the first kind of order and below it in the others."""
    first_order, *other_orders = errors
    methods: dict[str, None] = {}  # a set that keeps the sequence
    for by_method in errors.values():
        methods.update(dict.fromkeys(by_method))
    names = next(iter(errors[first_order].values()))

    rows: Rows = []
    for name in names:
        row: list[TableCell | str] = [name]
        for method in methods:
            text = _percent(errors, first_order, method, name)
            notes = []
            for order in other_orders:
                percent = _percent(errors, order, method, name)
                if percent:
                    notes.append(f"{order} {percent}")
            row.append(TableCell(text, notes))
        rows.append(row)

    caption = f"Top-1 error in percent, mean over severities and seeds: {first_order}"
    if other_orders:
        caption += ", and below it in other orders"
    caption += "."
    if MCE in names:
        caption += f" {MCE} is the mean corruption error, of which AlexNet has 100."
    return Table(caption, ["corruption", *methods], rows)


def _percent(errors: Errors, order: str, method: str, name: str) -> str:
    """An error in percent; empty if the method didn't run in this order."""
    error = errors[order].get(method, {}).get(name)
    return "" if error is None else f"{100 * error:.2f}"


def _data(errors: Errors) -> Table:
    """Each error in a row of its own."""
    data = Table("top-1 error in percent", ["order", "method", "corruption", "error"], [])
    for order, by_method in errors.items():
        for method, of_method in by_method.items():
            for name in of_method:
                data.rows.append([order, method, name, _percent(errors, order, method, name)])
    return data
