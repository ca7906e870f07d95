"""Results as tables, for the terminal, for Markdown and as CSV."""

from layershuffle.results.table import Rows, Table, as_csv, markdown, terminal
from layershuffle.results.tables.printed import as_text, printed, title
from layershuffle.results.tables.scores import full_depth, grid, of, shown
from layershuffle.results.tables.wording import (
    NO_INTERVAL,
    ONE_SEED,
    PER_BATCH,
    SEVERAL_SEEDS,
    Group,
    meaning,
    name_of,
    percent,
    ran_per_batch,
    to_compare_with,
)

__all__ = [
    "NO_INTERVAL",
    "ONE_SEED",
    "PER_BATCH",
    "SEVERAL_SEEDS",
    "Group",
    "Rows",
    "Table",
    "as_csv",
    "as_text",
    "full_depth",
    "grid",
    "markdown",
    "meaning",
    "name_of",
    "of",
    "percent",
    "printed",
    "ran_per_batch",
    "shown",
    "terminal",
    "title",
    "to_compare_with",
]
