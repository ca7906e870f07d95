"""Results as tables, for the terminal, for Markdown and as CSV."""

from layershuffle.results.table import Rows, Table, as_csv, markdown, terminal
from layershuffle.results.tables.printed import as_text, excerpt, printed, title
from layershuffle.results.tables.scores import full_depth, grid, of, shown
from layershuffle.results.tables.wording import (
    ONE_SEED,
    PER_BATCH,
    SEVERAL_SEEDS,
    TOO_WIDE,
    Group,
    half_interval,
    has_too_wide,
    interval_meaning,
    meaning,
    name_of,
    percent,
    ran_per_batch,
    to_compare_with,
)

__all__ = [
    "ONE_SEED",
    "PER_BATCH",
    "SEVERAL_SEEDS",
    "TOO_WIDE",
    "Group",
    "Rows",
    "Table",
    "as_csv",
    "as_text",
    "excerpt",
    "full_depth",
    "grid",
    "half_interval",
    "has_too_wide",
    "interval_meaning",
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
