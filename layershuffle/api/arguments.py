"""Checks the arguments that a command checks by the types of its options, but a Python program can pass as it likes.

A type such as ``Split`` says which words there are, and Python holds nobody to it. A misspelt word would raise an
error from deep within a library, or pass for another one in silence, as a strategy "greed" would for "climb".
"""

from numbers import Integral
from typing import Any, get_args

from layershuffle.errors import UserError, shown
from layershuffle.options import LARGEST_SEED


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise a UserError unless a value is one of the words to choose from.

    Args:
        name: the name of the argument.
        value: its value.
        choices: the type of the argument, a ``Literal`` of ``layershuffle.choices``.
    """
    words = get_args(choices)
    if value not in words:
        raise UserError(f"{name} can't be {shown(value)}: choose from {', '.join(words)}")


def check_at_least(least: int, **numbers: object) -> None:
    """Raise a UserError unless each of ``numbers``, which are passed by name, is a whole number from ``least`` on."""
    for name, number in numbers.items():
        # ``Integral`` are also numpy's numbers, which are no ``int``.
        if not isinstance(number, Integral) or int(number) < least:
            raise UserError(f"{name} can't be {shown(number)}: give a whole number that is {least} or more")


def check_seed(seed: object) -> None:
    """Raise a UserError unless the seed is one that everything random takes."""
    if not isinstance(seed, Integral) or not 0 <= int(seed) <= LARGEST_SEED:
        raise UserError(f"a seed can't be {shown(seed)}: give a whole number from 0 to {LARGEST_SEED}")


def check_orders(order: object, random_orders: object) -> None:
    """Raise a UserError if both one order and a number of random ones are given, or if there are to be none."""
    if random_orders is None:
        return
    check_at_least(1, random_orders=random_orders)
    if order is not None:
        raise UserError("order is one order and random_orders samples many: give one of the two")
