"""The orders that a cluster or a simulation ran, read from its event log."""

import json
import random
from bisect import bisect_right
from collections import Counter
from functools import cache
from itertools import accumulate
from pathlib import Path

from layershuffle.errors import UserError
from layershuffle.orders.order import Order

MAX_LINES = 5_000_000
"""A limit, because an event log grows for as long as its cluster runs."""


def sample(path: str, rng: random.Random) -> Order:
    """Sample an order of an event log, each as likely as it is frequent there; raises as ``read_orders``."""
    orders, cumulative_counts = _cumulative(path)
    # Inverse transform sampling: of all the runs, in the sequence of the orders, the one with this number. Not
    # rng.choices, which may change with the version of Python.
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
    counts: Counter[str] = Counter()
    try:
        with Path(path).open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if number > MAX_LINES:
                    raise UserError(f"{path} has more than {MAX_LINES:,} lines: keep the last ones (tail)")
                # The log may still be written: its last line can be half an event.
                if not line.endswith("\n"):
                    break
                event = json.loads(line)
                if event["event"] == "ended" and not event["failed"]:
                    counts[event["order"]] += 1
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    except UserError:  # It is a ValueError, which the next clause would take for a damaged line.
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not an event log of layershuffle serve or simulate: see line {number}") from error
    if not counts:
        raise UserError(f"{path} has no order that ran: serve or simulate some requests first")
    return {Order(text): times for text, times in counts.items()}
