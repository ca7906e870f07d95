"""Wraps what a command says on stderr at the width of the terminal, so that no word is cut in two."""

import os
import sys
import textwrap

FEWEST_COLUMNS = 20
"""A terminal that says it is narrower, or has no width, wraps by itself."""


def wrapped_on_terminal(text: str) -> str:
    """The text in lines that fit the terminal; as it is where stderr is none, so that programs find one line.

    Paths and other long words stay whole. What follows the first line of a paragraph is indented as that is.
    """
    columns = _columns()
    if columns < FEWEST_COLUMNS:
        return text
    return "\n".join(_wrapped(line, columns) for line in text.split("\n"))


def _wrapped(line: str, columns: int) -> str:
    """One line of a text, in as many as it needs."""
    if len(line) <= columns:
        return line
    indent = line[: len(line) - len(line.lstrip())]
    # A path or an option that is broken at one of its dashes can't be copied.
    return textwrap.fill(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _columns() -> int:
    """The width of the terminal that stderr is; 0 where it is none."""
    # Not shutil.get_terminal_size, which asks for the width of stdout: that may be a pipe.
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError, AttributeError):  # A test or a notebook may have put something else in its place.
        return 0
