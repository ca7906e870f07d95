"""What the sections share: headings, names of files, what ± means, and a table of several setups."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from layershuffle.report.page import Picture, Table, TableCell, slug
from layershuffle.report.setups import SetupResults
from layershuffle.results import tables
from layershuffle.results.score import quality_in_tables, quality_in_words

Rows = list[list[TableCell | str]]

READINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sequential": ("sequential", {}),
    "arbitrary, per batch": ("arbitrary", {"reading": "per batch"}),
    "arbitrary, fixed": ("arbitrary", {"reading": "fixed"}),
}
"""The rows that compare methods at full depth: protocols, and what their variants have."""


def heading(title: str, setup: SetupResults) -> str:
    """The title of a section about one setup."""
    return f"{title}: {setup.name}" if setup.name else title


def picture(kind: str, setup: SetupResults, caption: str, draw: Callable[[], Figure], data: Table) -> Picture:
    """A picture of a setup, whose name the caption begins with if there are several."""
    name = slug(kind, setup.data, setup.backbone)
    # Captions come with a small first letter, which is right only after a name.
    caption = f"{setup.name}: {caption}" if setup.name else caption[0].upper() + caption[1:]
    return Picture(name, caption, draw, data)


def texts(table: tables.Table) -> Rows:
    """The rows of a table of results, for a table of the report."""
    return [list(row) for row in table.rows]


def by_setup(setups: Sequence[SetupResults], rows_of: Callable[[SetupResults], Rows]) -> Rows:
    """The rows of all setups; if there are several, the first row of each says which one it is."""
    all_rows: Rows = []
    for setup in setups:
        rows = rows_of(setup)
        # Only the first row: the following ones belong to the same setup until another is named.
        if rows and setup.name:
            rows[0][0] = TableCell(str(rows[0][0]), [setup.name])
        all_rows += rows
    return all_rows


def meaning(setups: Sequence[SetupResults]) -> str:
    """What ± stands for in all tables, which only the summary says; empty if there are no models that it compares."""
    seeds: dict[str, int] = {}
    for setup in setups:
        for method in setup.methods:
            runs = setup.runs_of(method)
            if runs:
                name = f"{method} ({setup.name})" if setup.name else method
                seeds[name] = len(runs)
    if not seeds:
        return ""
    per_batch = False
    for setup in setups:
        if any(tables.ran_per_batch(results.scores) for results in setup.files.values()):
            per_batch = True
    return tables.interval_meaning(seeds, per_batch)


def with_note(caption: str, rows: Rows) -> str:
    """The caption of a table, which says so if some intervals are too wide to be shown."""
    if tables.has_too_wide(Table("", [], rows).texts()):
        return f"{caption} {tables.TOO_WIDE}"
    return caption


def quality_of(setups: Sequence[SetupResults], in_words: bool = False) -> str:
    """What the numbers of some setups are, at the beginning of a caption: "Top-1", "mAP", or both.

    Args:
        setups: those in the table.
        in_words: whether to write "Top-1 accuracy" and "Mean average precision" instead.
    """
    name_of = quality_in_words if in_words else quality_in_tables
    kinds = {setup.has_several_labels for setup in setups}
    if len(kinds) > 1:
        text = f"{name_of(False)}, or {name_of(True)} where images have several labels,"
    else:
        text = name_of(True in kinds)
    # "mAP" has a small letter everywhere.
    return text if text == "mAP" else text[0].upper() + text[1:]
