"""The orders whose answers are looked at together, not only scored one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from layershuffle.orders.order import Order
from layershuffle.orders.protocols import PROTOCOLS, Trial
from layershuffle.results.score import Variant


@dataclass(frozen=True)
class OrderGroup:
    """Orders that are samples of the same thing.

    Attributes:
        protocol: the family of orders.
        variant: what distinguishes these orders from others of the family.
        orders: the orders. One that was sampled twice is there twice, as it counts twice in the mean of the scores.
    """

    protocol: str
    variant: Variant
    orders: list[Order]


def order_groups(trials: Sequence[Trial]) -> list[OrderGroup]:
    """The fixed orders of protocols with ``by_class``, in groups of the same protocol and variant."""
    groups: dict[tuple[Any, ...], OrderGroup] = {}
    for trial in trials:
        # The outputs of a group are recognised by their order. Orders that are sampled for each batch aren't known yet.
        if PROTOCOLS[trial.protocol].by_class and isinstance(trial.order, Order):
            key = (trial.protocol, *trial.variant.values())
            group = groups.setdefault(key, OrderGroup(trial.protocol, trial.variant, []))
            group.orders.append(trial.order)
    return list(groups.values())
