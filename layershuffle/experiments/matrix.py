"""Rows of an experiment's file that differ in little are written once, with a ``matrix`` of what differs."""

import re
from typing import Any

from layershuffle.errors import UserError


def expand(entries: Any) -> Any:
    """Put one entry for each row of its ``matrix`` in place of an entry that has one.

    A row gives values to names, which stand in braces in the entry's name and in its values::

        reduced_depth_{k}:
          options: {model.sampler.k: "{k}"}
          matrix: [{k: 3}, {k: 6}]

    is the same as::

        reduced_depth_3: {options: {model.sampler.k: 3}}
        reduced_depth_6: {options: {model.sampler.k: 6}}

    Args:
        entries: a mapping by name, such as an experiment's methods. Anything else is returned as it is.

    Raises:
        UserError: if a matrix is no list of mappings, or two entries get the same name.
    """
    if not isinstance(entries, dict):
        return entries
    expanded: dict[str, Any] = {}
    for name, entry in entries.items():
        for row in _rows(name, entry):
            full_name = _fill(name, row)
            if full_name in expanded:
                raise UserError(f"{full_name} is there twice: the names in a matrix should tell its rows apart")
            expanded[full_name] = _fill(_without_matrix(entry), row)
    return expanded


def _rows(name: str, entry: Any) -> list[dict[str, Any]]:
    """The rows of an entry's matrix; a single empty one if it has no matrix."""
    if not isinstance(entry, dict) or "matrix" not in entry:
        return [{}]
    rows = entry["matrix"]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UserError(f"the matrix of {name} is a list of rows, such as [{{k: 3}}, {{k: 6}}], not {rows}")
    for row in rows:
        # A name without its value would keep its braces, and become a folder called "reduced_depth_{k}".
        missing = set(re.findall(r"{(\w+)}", name)) - row.keys()
        if missing:
            raise UserError(f"the matrix of {name} has a row without {', '.join(sorted(missing))}: {row}")
    return rows


def _without_matrix(entry: Any) -> Any:
    """An entry without its matrix, which the parser doesn't know."""
    if not isinstance(entry, dict):
        return entry
    return {key: value for key, value in entry.items() if key != "matrix"}


def _fill(value: Any, row: dict[str, Any]) -> Any:
    """A value in which the names in braces are replaced by the row's values."""
    if isinstance(value, dict):
        return {_fill(key, row): _fill(item, row) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, row) for item in value]
    if not isinstance(value, str):
        return value
    for name, replacement in row.items():
        # A value that is nothing but a placeholder keeps its type: a number stays a number.
        placeholder = f"{{{name}}}"
        if value == placeholder:
            return replacement
        value = value.replace(placeholder, str(replacement))
    return value
