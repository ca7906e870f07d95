"""What the type hint of an option admits: which types, and which classes a user can name."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args


def alternatives(hint: Any) -> Iterator[Any]:
    """The types that a type hint admits: both of ``int | None``. The arguments of a ``Callable`` are one, as a list."""
    parts = get_args(hint)
    if not parts:
        yield hint
    for part in parts:
        yield from alternatives(part)


def class_names(hint: Any) -> set[str]:
    """The names of the classes that a type hint admits; none if it admits a number or a text, which can be anything."""
    if isinstance(hint, type):
        return _names_of_subclasses(hint)
    parts = []
    for part in get_args(hint):
        # The arguments of a Callable are a list.
        parts.extend(part if isinstance(part, list) else [part])
    if {int, float, str} & set(parts):
        return set()
    return set().union(*(class_names(part) for part in parts))


def _names_of_subclasses(base: type) -> set[str]:
    """The names of a class's public subclasses, direct or not; none of a class of Python's own such as ``list``."""
    if base.__module__ == "builtins":
        return set()
    names: set[str] = set()
    # Only what is imported is there; the user's own classes are given by their import path.
    subclasses: list[type] = base.__subclasses__()
    for subclass in subclasses:
        if not inspect.isabstract(subclass):
            names.add(subclass.__name__)
        names |= _names_of_subclasses(subclass)
    return {name for name in names if not name.startswith("_")}
