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
    """Make one summed group of two steps, those that raise the loss least, until no more than ``steps`` are left.

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
        step = summed([*order[first].units, *order[second].units])
        # Where the group runs matters as much as what is in it.
        for place, other in ((first, second), (second, first)):
            steps = list(order)
            steps[place] = step
            del steps[other]
            orders.append(Order(steps))
    return orders


def exchanged(order: Order, layers: Sequence[int]) -> list[Order]:
    """The orders in which two layers of different steps change places, or one makes room for another of ``layers``."""
    # Within a group the sequence means nothing, so only layers of different steps change places.
    replacements: list[dict[Unit, Unit]] = []
    for first, second in combinations(order, 2):
        pairs = product(first.units, second.units)
        replacements += [{one: other, other: one} for one, other in pairs]
    left_out = [Unit(layer) for layer in layers if layer not in order.layers]
    replacements += [{unit: other} for unit, other in product(order.units, left_out)]
    return [_replaced(order, replacement) for replacement in replacements]


def in_halves(order: Order) -> Order:
    """The order in which each step of whole layers runs as a group of their attentions and one of the other halves."""

    def half_of(step: Step, half: str) -> Step:
        return summed([Unit(unit.layer, half) for unit in step.units])

    return Order(half_of(step, half) for step, half in product(order, "af"))


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
    # Merged before the clock starts, as it is done once when a model is exported.
    works = [partial(widen(model, order), image) for order in orders]
    times: list[list[float]] = [[] for _ in works]
    for _ in range(repeats + 1):
        for work, work_times in zip(works, times):
            work_times.append(seconds(work, image.device))
    # The first run of each warms up.
    return [min(work_times[1:]) for work_times in times]


def _replaced(order: Order, replacement: dict[Unit, Unit]) -> Order:
    """The order with other units in the place of those that ``replacement`` names."""
    steps = []
    for step in order:
        units = [replacement.get(unit, unit) for unit in step.units]
        steps.append(summed(units))
    return Order(steps)
