"""Checks the numbers of policies, scenarios and clusters."""

from collections.abc import Collection, Mapping
from typing import Any

from layershuffle.errors import UserError, shown

MOST = 1e9
"""What no number of seconds, nodes or requests is above."""


def check_numbers(values: Mapping[str, Any], *, whole: Collection[str] = (), positive: Collection[str] = ()) -> None:
    """Raise a UserError unless all values are numbers from 0 to ``MOST``.

    Args:
        values: the numbers by their names, which are those of options. None stands for an option that isn't given.
        whole: the names of those that are whole numbers.
        positive: the names of those that are above 0.
    """
    for name, value in values.items():
        if value is None:
            continue
        kind = int if name in whole else (int, float)
        # Written like this, so that NaN is refused, too.
        can_be = isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= MOST
        if not can_be or (name in positive and not value):
            words = "a whole number" if name in whole else "a number"
            least = "above 0" if name in positive else "from 0 up"
            raise UserError(f"{name} can't be {shown(value)}: give {words} {least}, at most {MOST:,.0f}")
