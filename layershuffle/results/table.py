"""A table, and its forms: for the terminal, in Markdown and as CSV."""

import csv
import io
import textwrap
from typing import NamedTuple

import rich.table
from rich import box

Rows = list[list[str]]


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        header: the names of the columns.
        rows: the cells, row by row.
    """

    header: list[str]
    rows: Rows


def terminal(header: list[str], rows: Rows, title: str = "") -> rich.table.Table:
    """A table for rich's console that fits 80 columns where it can."""
    table = rich.table.Table(
        title=title,
        title_justify="left",
        title_style="bold underline",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for column, name in enumerate(header):
        # Of the cells only those of the first column wrap, which may hold a long order.
        table.add_column(textwrap.fill(name, 13), justify="right" if column else "left", no_wrap=column > 0)
    for row in rows:
        table.add_row(*row)
    return table


def markdown(header: list[str], rows: Rows) -> str:
    """A Markdown table."""
    # The first column holds names and is aligned to the left, the others hold numbers.
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [header, rule, *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_csv(header: list[str], rows: Rows) -> str:
    """The content of a CSV file."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
    return buffer.getvalue()
