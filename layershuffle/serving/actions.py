"""What a router tells its driver to do."""

from collections.abc import Hashable
from typing import NamedTuple

from layershuffle.orders.order import Order


class Run(NamedTuple):
    """Let ``node`` run ``layers`` on the newest state of ``request``.

    Attributes:
        node: the key of the node.
        request: the number of the request.
        epoch: tells this run of the request from earlier and later ones.
        layers: the layers to run, one after the other.
        position: the position of the first of them: how many results of the request had come when it started.
    """

    node: Hashable
    request: int
    epoch: int
    layers: tuple[int, ...]
    position: int


class Load(NamedTuple):
    """Let ``node`` load ``layer`` besides those that it holds."""

    node: Hashable
    layer: int


class Ended(NamedTuple):
    """Hand a request back to its caller.

    Attributes:
        request: its number.
        order: the order that ran. A layer that started before the results of others came has a lag.
        missed: the layers that it did without.
        seconds: the time since it was submitted.
        failed: whether its deadline came, or it was cancelled, before it was done.
    """

    request: int
    order: Order
    missed: tuple[int, ...]
    seconds: float
    failed: bool


Task = Run | Load
"""What a node is told."""
Action = Run | Load | Ended
"""What a driver is told."""
