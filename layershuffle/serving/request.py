"""What a router knows of a request."""

from collections.abc import Sequence

from layershuffle.serving.node import Node


class Request:
    """What a router knows of a request.

    Attributes:
        number: requests are numbered as they came.
        submitted: when it came.
        left: the layers that are left to run, ascending.
        executed: those that ran, as they ran.
        missed: those that it does without.
        chain: with the routing "chain", the node for which it waits or which it uses.
        path: with the routing "path", the nodes that are to run the layers that are left.
        epoch: counts up whenever it begins to run or to wait, or is answered.
    """

    __slots__ = ("chain", "epoch", "executed", "left", "missed", "number", "path", "submitted")

    def __init__(self, number: int, depth: int, now: float) -> None:
        self.number = number
        self.submitted = now
        self.left = list(range(depth))
        self.executed: list[int] = []
        self.missed: list[int] = []
        self.chain: Node | None = None
        self.path: dict[int, Node] = {}
        self.epoch = 0

    def has_run(self, layers: Sequence[int]) -> None:
        """Layers were run for it."""
        self.executed += layers
        self.left = [layer for layer in self.left if layer not in layers]
        self.epoch += 1

    def give_up(self, layers: Sequence[int]) -> None:
        """Do without layers."""
        self.missed += layers
        self.left = [layer for layer in self.left if layer not in layers]
