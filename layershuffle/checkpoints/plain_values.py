"""Whether what a checkpoint or an exported folder says of a model and its data can be: its types and bounds.

Such files may come from strangers. What passes here names no endless work, and can be compared, printed and written as
JSON.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

from layershuffle.errors import shown
from layershuffle.models.backbones import Head
from layershuffle.models.position import Position

MOST_IMAGES = 100_000_000
"""How many images a data set may be told to have."""
MOST_PER_CLASS = 20_000
"""How many images of each class a data set may be told to draw."""
MOST_PER_BATCH = 1 << 16
"""How many images a batch may be told to have."""
LARGEST = 1 << 64
"""What no whole number reaches."""
LONGEST = 1 << 16
"""How many characters a text may have."""
DEEPEST = 20
"""How many lists and mappings may lie in each other."""
MOST_VALUES = 1 << 18
"""How many values there may be. A file of a few bytes can name the same list in itself again and again."""

Check = Callable[[str, Any], bool]
"""Whether a value can be, by the key that it has in a mapping."""


def is_mapping(value: Any) -> bool:
    """Whether it is a mapping whose keys are texts."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def is_text(value: Any) -> bool:
    """Whether it is a text that isn't endless."""
    return isinstance(value, str) and len(value) <= LONGEST


def is_whole(value: Any) -> bool:
    """Whether it is a whole number of 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST


def is_amount(value: Any) -> bool:
    """Whether it is a finite number that isn't negative."""
    return _is_number(value) and value >= 0


def are_plain(value: Any) -> bool:
    """Whether it is a mapping of texts to text, finite numbers, booleans, None, and lists or mappings of these."""
    return _fault("", value, lambda *_: True) is None


def fault_of_model(value: Any) -> str | None:
    """What can't be among the arguments of ``create_model``; None if all of it can."""
    return _fault("model", value, _can_be_in_a_model)


def fault_of_data(value: Any) -> str | None:
    """What can't be in what ``ImageData.config`` returned; None if all of it can."""
    return _fault("data", value, _can_be_in_data)


def _fault(name: str, value: Any, can_be: Check) -> str | None:
    """What in nested mappings and lists is no plain value or, by its key, can't be; None if there is nothing."""
    if not isinstance(value, dict):
        return f"its {name} can't be {shown(value)}"
    for count, (place, key, part) in enumerate(_parts(name, value)):
        if count == MOST_VALUES:
            return f"its {name} can't have more than {MOST_VALUES:,} values"
        if not _is_plain(part) or not can_be(key, part):
            # The keys in a place come from the file, too: ``shown`` shortens them, and its quotes are taken off.
            shown_place = shown(place)[1:-1]
            return f"its {shown_place} can't be {shown(part)}"
    return None


def _parts(name: str, value: Any) -> Iterator[tuple[str, str, Any]]:
    """Every part of nested mappings and lists: its place, such as ``data.args``, the last key of it, and itself."""
    # Without recursion, because a file could nest its values deeper than Python's stack.
    waiting = [(name, name, value, 0)]
    while waiting:
        place, key, part, depth = waiting.pop()
        if depth > DEEPEST:
            # None of our files does this, and a list that holds itself would never end. A bare object is no plain
            # value, so that the caller refuses the file here.
            yield place, key, object()
            return
        yield place, key, part
        if isinstance(part, dict):
            for inner_key, inner in part.items():
                waiting.append((f"{place}.{inner_key}", str(inner_key), inner, depth + 1))
        elif isinstance(part, (list, tuple)):
            # The parts of a list have the list's key, which says what they may be.
            waiting += [(place, key, inner, depth + 1) for inner in part]


def _is_plain(value: Any) -> bool:
    """Whether it is text, a finite number, a boolean or None, or a list or a mapping, whatever these two hold."""
    if isinstance(value, dict):
        return is_mapping(value)
    if isinstance(value, str):
        return is_text(value)
    return value is None or isinstance(value, (bool, list, tuple)) or _is_number(value)


def _is_number(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return is_whole(value)


def _can_be_in_a_model(key: str, value: Any) -> bool:
    """Whether a value can be that of a key among the arguments of ``create_model``, as far as its type doesn't say."""
    if key == "position":
        return value in get_args(Position)
    if key == "head":
        return value in get_args(Head)
    if key == "positions":
        return value is None or is_whole(value)
    if key == "norm_eps":
        return value is None or (is_amount(value) and 0 < value < 1)
    return True


def _can_be_in_data(key: str, value: Any) -> bool:
    """Whether no option, also of those inside others, asks for more images than there are."""
    # Synthetic data sets make as many images as they are told, so that a small file could fill the memory.
    most = math.inf
    if key.endswith("images_per_class"):
        most = MOST_PER_CLASS
    elif key.endswith("batch_size"):
        most = MOST_PER_BATCH
    elif key.endswith("images") or key == "size":
        most = MOST_IMAGES
    return not isinstance(value, (int, float)) or value <= most
