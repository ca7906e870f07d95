"""What the terminal and ``print`` show of results: their tables, and what the numbers mean."""

import io
from collections.abc import Iterator

import rich.table
from rich.console import Console

from layershuffle.plurals import counted
from layershuffle.results.record import Results
from layershuffle.results.table import Rows, terminal
from layershuffle.results.tables.scores import of
from layershuffle.results.tables.wording import OVER_ORDERS, meaning, ran_per_batch, to_compare_with

LOWEST = 12
"""So many classes, those of the lowest accuracy, are shown; the CSV file has all."""

HEADINGS = {
    "corruptions": "corruptions: top-1 error %, mean over the severities",
    "balanced": "each class counts the same",
    "labels": "labels: average precision and F1",
    "together": "orders together: the mean of their probabilities, and how far they disagree",
}
"""The headings of tables that hold other numbers than top-1 accuracies."""

WIDTH = 80
"""The columns of the text that ``as_text`` returns."""


def title(results: Results) -> str:
    """What was studied, and on which images."""
    return f"{results.label} on {counted(results.data.images, 'image')} ({results.data.name}, {results.data.split})"


def excerpt(name: str, rows: Rows, quality: str = "top-1") -> tuple[str, Rows]:
    """The heading of a table, and the rows that people are shown: of many classes, those that are told worst.

    The numbers are ``Results.quality``, in percent.
    """
    heading = HEADINGS.get(name, f"{name}: {quality} %")
    if name not in ("classes", "labels") or len(rows) <= LOWEST:
        return heading, rows
    # These tables begin with the lowest accuracy or precision.
    return f"{heading}, the lowest {LOWEST} of {len(rows)}", rows[:LOWEST]


def printed(results: Results) -> Iterator[rich.table.Table | str]:
    """The tables that results fill, what to compare them with, and what their intervals mean."""
    all_rows: Rows = []
    for name, (header, rows) in of(results).items():
        heading, shown = excerpt(name, rows, results.quality)
        if name == "orders":
            heading = title(results)
        yield terminal(header, shown, heading)
        all_rows += rows

    # With several labels chance is unknown, but measures may know of something else to compare with.
    has_chance = results.scores and not results.has_several_labels
    has_levels = any(measure.levels(results) for measure in results.measures)
    if has_chance or has_levels:
        yield to_compare_with(results)

    # What ± means is said only where a table has one.
    if not any("±" in text for row in all_rows for text in row):
        return
    if results.has_several_labels:
        yield OVER_ORDERS
    else:
        yield meaning({results.label: 1}, ran_per_batch(results.scores), all_rows)


def as_text(results: Results) -> str:
    """What ``printed`` returns, as plain text of 80 columns."""
    buffer = io.StringIO()
    console = Console(file=buffer, markup=False, width=WIDTH)
    for part in printed(results):
        console.print(part)
    return buffer.getvalue().rstrip("\n")
