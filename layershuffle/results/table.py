"""A table, and its forms: for the terminal, in Markdown and as CSV."""

import csv
import io
import textwrap
from typing import NamedTuple

import rich.table
from rich import box

from layershuffle.results.markdown import plain

Rows = list[list[str]]

WIDTH = 80
"""The width of a terminal that tables fit in where they can."""
WIDEST = 20
"""So many letters of a cell are shown in other columns than the first, which says what a row is about."""
HEADING = 13
"""After so many letters the name of a column goes on in another line."""
LONGEST_HEADING = 30
"""Longer names of columns, such as those with a whole order, are shown without their middle."""


class Table(NamedTuple):
    """A table of texts.

    Attributes:
        header: the names of the columns.
        rows: the cells, row by row.
    """

    header: list[str]
    rows: Rows


def terminal(header: list[str], rows: Rows, title: str = "") -> rich.table.Table:
    """A table for rich's console that fits 80 columns where it can: its headings wrap before its cells do."""
    table = rich.table.Table(
        title=title,
        title_justify="left",
        title_style="bold underline",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    for column, heading in enumerate(_headings(header, rows)):
        # Of the cells only those of the first column wrap, which may hold a long order.
        if column:
            table.add_column(heading, justify="right", no_wrap=True, max_width=WIDEST)
        else:
            table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _headings(header: list[str], rows: Rows) -> list[str]:
    """The names of the columns in lines of 13 letters, or as narrow as their words where the table needs the space."""
    header = [_without_middle(name) for name in header]
    in_lines = [textwrap.fill(name, HEADING) for name in header]
    if _width(in_lines, rows) <= WIDTH:
        return in_lines
    # Short words share a line that is no longer than the longest word.
    in_words = [textwrap.fill(name, max(map(len, name.split()), default=1)) for name in header]
    if _width(in_words, rows) <= WIDTH:
        return in_words
    # Single words don't make it fit either.
    return in_lines


def _without_middle(name: str) -> str:
    """The name of a column, of which the beginning and the end are kept if it is long."""
    if len(name) <= LONGEST_HEADING:
        return name
    beginning = textwrap.shorten(name, LONGEST_HEADING // 2, placeholder="")
    return f"{beginning} […] {name[-LONGEST_HEADING // 3 :].strip()}"


def _width(headings: list[str], rows: Rows) -> int:
    """How many letters wide the table is with these headings."""
    # A space stands between two columns.
    width = len(headings) - 1
    # Without rows no column has cells, and the headings alone count.
    columns = list(zip(*rows)) or [()] * len(headings)
    for heading, cells in zip(headings, columns):
        texts = [*heading.split("\n"), *cells]
        width += max(map(len, texts))
    return width


def markdown(header: list[str], rows: Rows) -> str:
    """A Markdown table, whose cells are shown as they are."""
    # The first column holds names and is aligned to the left, the others hold numbers.
    rule = ["---"] + ["---:"] * (len(header) - 1)
    lines = [[plain(name) for name in header], rule]
    lines += [[plain(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def as_csv(header: list[str], rows: Rows) -> str:
    """The content of a CSV file, in which no cell is a formula, and everything is UTF-8."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for row in (header, *rows):
        writer.writerow([_as_text(cell) for cell in row])
    return buffer.getvalue()


def _as_text(cell: str) -> str:
    """The cell as spreadsheets show it as text: names of files and classes can be anything."""
    # Bytes of a file's name that aren't UTF-8 become escapes such as \\udce9.
    cell = cell.encode("utf-8", "backslashreplace").decode()
    # Spreadsheets compute cells that begin like this (OWASP, "CSV Injection"), and show the others as they are.
    if cell.startswith(("=", "+", "-", "@", "\t", "\r")) and not _is_number(cell):
        return f"'{cell}"
    return cell


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
