"""Dataclasses out of JSON, and what doesn't fit them."""

import json
from dataclasses import dataclass, field
from typing import Any

import pytest

from layershuffle import typed_json
from layershuffle.errors import UserError


@dataclass(frozen=True)
class Inner:
    share: float
    pair: tuple[int, str]


@dataclass(frozen=True)
class Outer:
    name: str
    inner: list[Inner]
    by_number: dict[int, float | None]
    anything: Any = None
    kind: str | None = field(default=None, metadata={"json": "class"})
    only_in_python: int = field(default=7, metadata={"json": None})


WHOLE = {"name": "a", "inner": [{"share": 0.5, "pair": [1, "b"]}], "by_number": {"3": 1, "4": None}}


def test_a_dataclass_reads_back():
    value = typed_json.read(Outer, WHOLE, "file")
    assert value == Outer("a", [Inner(0.5, (1, "b"))], {3: 1, 4: None})
    assert json.loads(json.dumps(typed_json.write(value))) == WHOLE
    assert typed_json.write(value, nulls=["class"]) == {**WHOLE, "class": None}
    assert typed_json.read(Outer, {**WHOLE, "class": "x"}, "file").kind == "x"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": 1}, "file.name"),
        ({"name": None}, "file.name"),
        ({"inner": {}}, "file.inner"),
        ({"inner": [1]}, "file.inner"),
        ({"inner": [{"share": 0.5}]}, "pair"),
        ({"inner": [{"share": True, "pair": [1, "b"]}]}, "file.inner.share"),
        ({"inner": [{"share": float("nan"), "pair": [1, "b"]}]}, "file.inner.share"),
        ({"inner": [{"share": 0.5, "pair": [1]}]}, "file.inner.pair"),
        ({"inner": [{"share": 0.5, "pair": [1.5, "b"]}]}, "file.inner.pair"),
        ({"by_number": {"x": 1}}, "file.by_number"),
        ({"by_number": {"3": "one"}}, "file.by_number.3"),
        ({"anything": {"deep": [{"down": float("inf")}]}}, "file.anything.deep.down"),
        # Whole numbers in JSON can have thousands of digits, more than a float or Python's int() takes.
        ({"inner": [{"share": 10**400, "pair": [1, "b"]}]}, "file.inner.share"),
        ({"inner": [{"share": 0.5, "pair": [10**400, "b"]}]}, "file.inner.pair"),
        ({"anything": [-(10**400)]}, "file.anything"),
        ({"by_number": {"9" * 5000: 1}}, "file.by_number"),
        ({"anything": json.loads("[" * 300 + "]" * 300)}, "file.anything is nested"),
        ({"unknown": 1}, "unknown"),
        ({"only_in_python": 1}, "only_in_python"),
    ],
)
def test_what_does_not_fit_is_named(change, place):
    with pytest.raises(UserError, match=place):
        typed_json.read(Outer, {**WHOLE, **change}, "file")
