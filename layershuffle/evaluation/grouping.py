"""Finding which layers of a model may run side by side, by its loss on data, and how long they then take."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, product

import torch
from torch import Tensor

from layershuffle.evaluation.search import Losses
from layershuffle.hardware import seconds
from layershuffle.models.model import OrderedViT
from layershuffle.models.widen import widen
from layershuffle.orders.order import Order, Step, Unit


def group(start: Order, losses_of: Losses, steps: int) -> Iterator[tuple[Order, float]]:
    """Join the two steps that raise the loss least into a summed group, and repeat until ``steps`` are left.

    Args:
        start: an order of whole layers, each of them once.
        losses_of: scores orders.
        steps: how many steps to end with.

    Yields:
        The best order of each number of steps and its loss, ``start`` first.
    """
    order = start
    yield order, losses_of([order])[0]
    # Greedy, because there are far too many ways to form groups to score them all.
    while len(order) > steps:
        candidates = joined(order)
        losses = losses_of(candidates)
        best = losses.index(min(losses))
        order = candidates[best]
        yield order, losses[best]


def joined(order: Order) -> list[Order]:
    """The orders in which two steps are one group, at the place of the first of them or of the second."""
    orders = []
    for first, second in combinations(range(len(order)), 2):
        joined_step = summed([*order[first].units, *order[second].units])
        # Where the group runs matters as much as what is in it.
        for place, removed in ((first, second), (second, first)):
            steps = list(order)
            steps[place] = joined_step
            del steps[removed]
            orders.append(Order(steps))
    return orders


def exchanged(order: Order, layers: Sequence[int]) -> list[Order]:
    """The orders in which two layers of different steps change places, or one makes room for a layer that is left out.

    Args:
        order: an order of whole layers and groups of them.
        layers: those that may run; the ones that ``order`` doesn't run are left out.
    """
    replacements: list[dict[Unit, Unit]] = []
    # Layers of the same group don't change places, because the sequence within a group means nothing.
    for first, second in combinations(order, 2):
        for one, other in product(first.units, second.units):
            replacements.append({one: other, other: one})

    left_out = [Unit(layer) for layer in layers if layer not in order.layers]
    for unit, other in product(order.units, left_out):
        replacements.append({unit: other})
    return [_replaced(order, replacement) for replacement in replacements]


def in_halves(order: Order) -> Order:
    """The order in which each step runs as two: the attentions of its layers side by side, then their feed-forwards."""
    steps: list[Step] = []
    for step in order:
        attentions = [Unit(unit.layer, "a") for unit in step.units]
        feed_forwards = [Unit(unit.layer, "f") for unit in step.units]
        steps += [summed(attentions), summed(feed_forwards)]
    return Order(steps)


def summed(units: Sequence[Unit]) -> Step:
    """The step that adds what each of ``units`` changes."""
    return Step(tuple(sorted(units)), summed=len(units) > 1)


@torch.inference_mode()
def seconds_when_merged(model: OrderedViT, image: Tensor, orders: Sequence[Order], repeats: int) -> list[float]:
    """How long an image takes in each of ``orders`` when the layers of each group are merged into a wider one.

    Args:
        model: on the device of the image.
        image: [1, channels, height, width], preprocessed.
        orders: what to merge and run.
        repeats: how many times each order is timed, after one run that warms up. They take turns.

    Returns:
        For each order the shortest of its times, because other work on the machine can only add to it.
    """
    # Merging isn't timed: it is done once, when a model is exported.
    runs = [partial(widen(model, order), image) for order in orders]
    times_by_order: list[list[float]] = [[] for _ in orders]
    for _ in range(repeats + 1):
        for run, times in zip(runs, times_by_order):
            times.append(seconds(run, image.device))
    # The first run of each order warms up.
    return [min(times[1:]) for times in times_by_order]


def _replaced(order: Order, replacement: dict[Unit, Unit]) -> Order:
    """The order with other units in the place of those that ``replacement`` names."""
    steps = []
    for step in order:
        units = [replacement.get(unit, unit) for unit in step.units]
        steps.append(summed(units))
    return Order(steps)
