"""What a router tells its driver to do."""

from collections.abc import Hashable
from typing import NamedTuple


class Run(NamedTuple):
    """Let ``node`` run ``layers`` on the current input of ``request``.

    Attributes:
        node: the key of the node.
        request: the number of the request.
        epoch: tells this run of the request from earlier and later ones.
        layers: the layers to run, one after the other.
        position: the position in the request's order at which the first of them runs.
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
        order: the layers that ran, in the order in which they ran.
        missed: the layers that it did without.
        seconds: the time since it was submitted.
        failed: whether its deadline came, or it was cancelled, before it was done.
    """

    request: int
    order: tuple[int, ...]
    missed: tuple[int, ...]
    seconds: float
    failed: bool


Task = Run | Load
"""What a node is told."""
Action = Run | Load | Ended
"""What a driver is told."""
