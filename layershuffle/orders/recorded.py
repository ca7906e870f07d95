"""The orders that a cluster or a simulation ran, read from its event log."""

import json
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import accumulate
from typing import TextIO

from layershuffle.errors import UserError
from layershuffle.files import open_without_waiting
from layershuffle.orders.order import Order

MAX_LINES = 5_000_000
"""A limit, because an event log grows for as long as its cluster runs."""
MAX_LINE = 1 << 20
"""How many characters a line may have."""


def sample(path: str, rng: random.Random) -> Order:
    """Sample an order of an event log, each as likely as it is frequent there; raises as ``read_orders``."""
    orders, cumulative_counts = _cumulative(path)
    # Inverse transform sampling: imagine all runs numbered, those of the first order first. Sample a number, and find
    # the order whose run it is. rng.choices would be shorter, but may change with the version of Python.
    run = rng.random() * cumulative_counts[-1]
    return orders[bisect_right(cumulative_counts, run)]


@cache  # Training samples from the same log in every step.
def _cumulative(path: str) -> tuple[list[Order], list[int]]:
    """The orders, and for each of them how often it and all those before it ran, taken together."""
    counts = read_orders(path)
    return list(counts), list(accumulate(counts.values()))


def read_orders(path: str) -> dict[Order, int]:
    """How often each order ran, by an event log of ``layershuffle serve`` or ``layershuffle simulate``.

    The log has a JSON object on each line. The orders are those of the events "ended", but for requests that failed.
    They name steps of the model's base order. A last line that was cut off is left out.

    Raises:
        UserError: if the file can't be read, another line isn't an event, or there is no order in it.
    """
    # Orders are counted as texts and parsed at the end, because a log of millions of requests has few different ones.
    counts: Counter[str] = Counter()
    try:
        with open(path, encoding="utf-8", errors="replace", opener=open_without_waiting) as file:
            for number, line in enumerate(_whole_lines(file, path), 1):
                try:
                    event = json.loads(line)
                    if event["event"] == "ended" and not event["failed"]:
                        counts[event["order"]] += 1
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise UserError(
                        f"{path} is not an event log of layershuffle serve or simulate: see line {number}"
                    ) from error
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    if not counts:
        raise UserError(f"{path} has no order that ran: serve or simulate some requests first")
    try:
        return {Order(text): times for text, times in counts.items()}
    except UserError as error:
        raise UserError(f"{path} is not an event log of layershuffle serve or simulate: {error}") from error


def _whole_lines(file: TextIO, path: str) -> Iterator[str]:
    """The lines of a log up to one that was cut off; raises UserError if there are too many, or one is too long."""
    number = 0
    # Iterating over the file would read a line of any length. readline stops at the limit.
    while line := file.readline(MAX_LINE):
        number += 1
        if number > MAX_LINES:
            raise UserError(f"{path} has more than {MAX_LINES:,} lines: keep the last ones (tail)")
        if len(line) == MAX_LINE:
            raise UserError(f"{path} is not an event log of layershuffle serve or simulate: line {number} is too long")
        # The log may still be written: its last line can be half an event.
        if not line.endswith("\n"):
            return
        yield line
