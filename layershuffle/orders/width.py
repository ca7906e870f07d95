"""Orders whose layers run side by side: in summed groups, or without waiting for each other."""

import heapq
import random

from layershuffle.errors import UserError
from layershuffle.orders.order import Order, Step, Unit
from layershuffle.plurals import counted


def grouped(order: Order, groups: int, *, halves: bool = False, averaged: bool = False) -> Order:
    """The layers of an order in a few groups, each of which runs side by side. Their sizes differ by one at most.

    Args:
        order: an order of whole layers, one at a time.
        groups: how many groups, from 1 to the number of layers.
        halves: whether a group's attentions run first, all side by side, and then its feed-forwards: two steps a group.
        averaged: whether a group's outputs are averaged. Otherwise the sum of its changes is added to the state.

    Raises:
        UserError: if there can't be as many groups, or the order isn't one of whole layers.
    """
    layers = order.whole_layers
    if layers is None:
        raise UserError(f"only whole layers, one at a time, can be put in groups, and '{order}' runs others")
    if not 1 <= groups <= max(1, len(layers)):
        raise UserError(
            f"{counted(len(layers), 'layer')} can't make {counted(groups, 'group')}: choose from 1 to {len(layers)}"
        )

    # An order without layers has a single group, which is empty and needs no step.
    if not layers:
        return Order()

    # The borders between the groups are spread evenly over the layers and rounded down, so that the sizes differ by one
    # at most.
    steps: list[str] = []
    for group in range(groups):
        start = group * len(layers) // groups
        end = (group + 1) * len(layers) // groups
        if halves:
            steps.append(_group([Unit(layer, "a") for layer in layers[start:end]], averaged))
            steps.append(_group([Unit(layer, "f") for layer in layers[start:end]], averaged))
        else:
            steps.append(_group([Unit(layer) for layer in layers[start:end]], averaged))
    return Order(steps)


def _group(units: list[Unit], averaged: bool) -> str:
    """The text of a step that runs these units side by side."""
    return str(Step(tuple(units), summed=not averaged))


def without_waiting(order: Order, in_flight: int, rng: random.Random) -> Order:
    """The order that results if each step starts as soon as fewer than ``in_flight`` others are running.

    A step reads the newest state when it starts, and its change is added when it ends. Steps start in the sequence of
    ``order`` and last for random times, uniform from 0.5 to 1.5, so they end in another sequence, which is that of the
    result.

    Args:
        order: an order none of whose steps reads an older state.
        in_flight: how many steps run at a time, at least 1. With 1, the order stays as it is.
        rng: the source of the durations, see ``seeded``.

    Raises:
        UserError: if ``in_flight`` is below 1, or a step reads an older state.
    """
    if in_flight < 1:
        raise UserError(f"at least 1 step is in flight, not {in_flight}")
    if order.longest_lag:
        raise UserError(f"'{order}' says already how old the states are that its steps read")

    # This simulates the run. Its clock jumps from the end of one step to the end of the next.
    now = 0.0
    ended: list[Step] = []
    # For each running step: when it will end, its index in ``order``, and how many steps had ended when it started. A
    # heap has the step that ends first in front.
    running: list[tuple[float, int, int]] = []

    def end_next() -> float:
        """Let the step that ends first end, and return the time of that."""
        end, index, ended_before = heapq.heappop(running)
        # The steps that have ended since it started are the results that it didn't see.
        lag = len(ended) - ended_before
        ended.append(order[index]._replace(lag=lag))
        return end

    for index in range(len(order)):
        if len(running) == in_flight:
            now = end_next()
        end = now + 0.5 + rng.random()
        heapq.heappush(running, (end, index, len(ended)))

    # All steps have started; the last ones end now.
    while running:
        end_next()
    return Order(ended)
