"""Whether what a checkpoint or an exported folder says of a model and its data can be: its types and bounds.

Such files may come from strangers. What passes here names no endless work, and can be compared and written as JSON.
"""

import math
from typing import Any, get_args

from layershuffle.models.position import Position

MOST_IMAGES = 100_000_000
"""How many images a data set may be told to have."""
MOST_PER_CLASS = 20_000
"""How many images of each class a data set may be told to draw."""
DEEPEST = 20
"""How many lists and mappings may lie in each other."""


def is_plain(value: Any, depth: int = DEEPEST) -> bool:
    """Whether it is text, a finite number, a boolean, None, or a list or mapping of these."""
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, (str, int)):
        return True
    if depth == 0:
        return False
    if isinstance(value, (list, tuple)):
        return all(is_plain(part, depth - 1) for part in value)
    return is_mapping(value) and all(is_plain(part, depth - 1) for part in value.values())


def is_mapping(value: Any) -> bool:
    """Whether it is a mapping whose keys are texts."""
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def is_model(value: Any) -> bool:
    """Whether these can be the arguments of ``create_model``."""
    if not is_mapping(value) or not is_plain(value):
        return False
    return value.get("position", "none") in get_args(Position)


def is_data(value: Any) -> bool:
    """Whether this can be what ``ImageData.config`` returned."""
    return is_mapping(value) and is_plain(value) and _is_in_bounds(value)


def _is_in_bounds(options: dict[str, Any]) -> bool:
    """Whether no option, also of those inside others, asks for more images than there are."""
    for name, option in options.items():
        if isinstance(option, dict) and not _is_in_bounds(option):
            return False
        most = math.inf
        if name.endswith("images_per_class"):
            most = MOST_PER_CLASS
        elif name.endswith("images") or name == "size":
            most = MOST_IMAGES
        if isinstance(option, (int, float)) and option > most:
            return False
    return True
