"""Reads dataclasses from JSON, with every value checked against its annotation, and writes them again."""

import dataclasses
import sys
import types
from collections.abc import Callable, Collection
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from layershuffle.errors import UserError

T = TypeVar("T")

SCALARS: dict[Any, tuple[str, tuple[type, ...]]] = {
    str: ("text", (str,)),
    bool: ("true or false", (bool,)),
    int: ("a whole number", (int,)),
    float: ("a finite number", (int, float)),
    type(None): ("null", (type(None),)),
}
"""What error messages call the scalar types, and the types that JSON's values of them have in Python."""
DEEPEST = 50
"""How many lists and objects may lie in each other."""
LONGEST_KEY = 18
"""How many digits a whole number may have that is a key."""


def read(kind: type[T], value: Any, name: str) -> T:
    """Turn a value out of a JSON file into a ``kind``.

    Args:
        kind: a scalar type, Any, a list, tuple, dict or union of them, or a dataclass of fields of such types. A field
            with a default may be missing from the JSON object, and no other names may be there.
        value: what ``json.loads`` returned.
        name: what error messages call the value.

    Raises:
        UserError: if the value has another type, or a number in it isn't finite.
    """
    return _read(kind, value, name)


def write(value: Any, nulls: Collection[str] = ()) -> Any:
    """Turn a dataclass, or a container of dataclasses, into what ``json.dumps`` takes.

    A field that is None and has None as its default is left out, unless its name in JSON is among ``nulls``.
    """
    if dataclasses.is_dataclass(value):
        content = {}
        for key, field in json_fields(value).items():
            part = getattr(value, field.name)
            # A field whose default is something else must be written, or None would be read as that default.
            if part is not None or field.default is not None or key in nulls:
                content[key] = write(part)
        return content
    if isinstance(value, dict):
        return {str(key): write(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [write(part) for part in value]
    return value


def json_fields(kind: Any) -> dict[str, dataclasses.Field[Any]]:
    """The fields of a dataclass by their names in JSON.

    A field's metadata can have another name than its own under "json", or None if JSON doesn't have the field.
    """
    named = {}
    for field in dataclasses.fields(kind):
        key = field.metadata.get("json", field.name)
        if key is not None:
            named[key] = field
    return named


def _read(kind: Any, value: Any, name: str) -> Any:
    if kind is Any:
        return _read_anything(value, name)
    if kind in SCALARS:
        return _read_scalar(kind, value, name)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, name)
    # What is left has types in brackets, such as list[int], or between bars, such as int | None. The origin of those
    # with bars is UnionType, that of Optional[int] is Union.
    readers = {
        Union: _read_union,
        types.UnionType: _read_union,
        list: _read_list,
        tuple: _read_tuple,
        dict: _read_dict,
    }
    origin = get_origin(kind)
    if origin not in readers:
        raise TypeError(f"{name}: JSON has no {kind}")
    return readers[origin](get_args(kind), value, name)


def _read_anything(value: Any, name: str, depth: int = 0) -> Any:
    """Check no more than that all numbers are finite, which JSON can't write otherwise, and that lists have an end."""
    if depth > DEEPEST:
        raise UserError(f"{name} is nested too deeply")
    if isinstance(value, dict):
        for key, part in value.items():
            _read_anything(part, f"{name}.{key}", depth + 1)
    elif isinstance(value, list):
        for part in value:
            _read_anything(part, name, depth + 1)
    elif isinstance(value, (int, float)) and not _is_finite(value):
        raise UserError(f"{name} is not a finite number: {_shortened(value)}")
    return value


def _is_finite(value: float) -> bool:
    """Whether it is a number that a float can hold; whole numbers in JSON can have thousands of digits."""
    return abs(value) <= sys.float_info.max  # which is False for NaN


def _read_scalar(kind: Any, value: Any, name: str) -> Any:
    words, accepted = SCALARS[kind]
    # Not isinstance: to Python, True is an int. JSON may write the float 1.0 as 1, so a float accepts int.
    if type(value) not in accepted or (type(value) in (int, float) and not _is_finite(value)):
        raise UserError(f"{name} is not {words}: {_shortened(value)}")
    return value


def _read_union(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    """Read the first of the types that fits; the error is what the first one lacks."""
    # The type that is meant comes first by convention, as in ``float | None``.
    reasons = []
    for kind in kinds:
        try:
            return _read(kind, value, name)
        except UserError as error:
            reasons.append(error)
    raise reasons[0]


def _read_list(kinds: tuple[Any, ...], value: Any, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise UserError(f"{name} is not a list: {_shortened(value)}")
    (kind,) = kinds
    return [_read(kind, part, name) for part in value]


def _read_tuple(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list) or len(value) != len(kinds):
        raise UserError(f"{name} is not a list of {len(kinds)}: {_shortened(value)}")
    return tuple(_read(kind, part, name) for kind, part in zip(kinds, value))


def _read_dict(kinds: tuple[Any, ...], value: Any, name: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{name} is not an object: {_shortened(value)}")
    key_kind, value_kind = kinds
    content = {}
    for key, part in value.items():
        content[_read_key(key_kind, key, name)] = _read(value_kind, part, f"{name}.{key}")
    return content


def _read_key(kind: Callable[[str], Any], key: str, name: str) -> Any:
    """JSON's keys are text; numbers among them have to be written as Python writes them."""
    if kind is int and not (key.isdecimal() and len(key) <= LONGEST_KEY):
        raise UserError(f"{name} has a key that is not a whole number: {_shortened(key)}")
    return kind(key)


def _read_dataclass(kind: Any, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise UserError(f"{name} is not an object: {_shortened(value)}")
    arguments = {}
    annotations = _annotations(kind)
    fields = json_fields(kind)
    for key, field in fields.items():
        if key in value:
            arguments[field.name] = _read(annotations[field.name], value[key], f"{name}.{key}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"{name} lacks {key}")
    # A misspelt name would otherwise leave its field at the default, in silence.
    unknown = [key for key in value if key not in fields]
    if unknown:
        raise UserError(f"{name} has something unknown: {_shortened(unknown[0])}")
    return kind(**arguments)


@cache  # Resolving annotations is slow, and a file has many values of the same class.
def _annotations(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
