"""What a router knows of a request."""

from collections.abc import Sequence

from layershuffle.orders.order import Order, Step, Unit
from layershuffle.serving.actions import Run
from layershuffle.serving.node import Node


class Request:
    """What a router knows of a request.

    Attributes:
        number: requests are numbered as they came.
        submitted: when it came.
        due: when it is answered with what has come by then; infinity if it waits for all.
        left: the layers that are left to start, ascending.
        running: what nodes run of it, by the epoch in which it started.
        executed: the layers that ran, as their results came.
        lags: for each of them, how many results came while it ran.
        missed: those that it does without.
        chain: with the routing "chain", the node for which it waits or which it uses.
        path: with the routing "path", the nodes that are to run the layers that are left.
        epoch: counts up whenever it begins to run or to wait, or is answered.
    """

    __slots__ = (
        "chain", "due", "epoch", "executed", "lags", "left", "missed", "number", "path", "running", "submitted"
    )  # fmt: skip

    def __init__(self, number: int, depth: int, now: float, due: float) -> None:
        self.number = number
        self.submitted = now
        self.due = due
        self.left = list(range(depth))
        self.running: dict[int, Run] = {}
        self.executed: list[int] = []
        self.lags: list[int] = []
        self.missed: list[int] = []
        self.chain: Node | None = None
        self.path: dict[int, Node] = {}
        self.epoch = 0

    @property
    def order(self) -> Order:
        """The order that ran."""
        steps = []
        for layer, lag in zip(self.executed, self.lags):
            units = (Unit(layer),)
            steps.append(Step(units, lag=lag))
        return Order(steps)

    def would_count(self, node: Node, now: float) -> bool:
        """Whether what a node starts now is expected to end before the request is due; else it needn't start."""
        # A node that seems too slow for any request would otherwise never run again, nor show that it isn't.
        expected = min(node.estimate, (self.due - self.submitted) / 2)
        return now + expected <= self.due

    def begin(self, run: Run) -> None:
        """A node begins to run layers for it."""
        self.running[run.epoch] = run
        self.left = [layer for layer in self.left if layer not in run.layers]

    def finish(self, run: Run) -> None:
        """Add the result of a node that has run layers for it."""
        del self.running[run.epoch]
        # The first layer read the state that was the newest when it started, so that its lag is the number of results
        # that have come since. Those after it in a visit read the result of the one before them.
        results_since = len(self.executed) - run.position
        self.lags += [results_since] + [0] * (len(run.layers) - 1)
        self.executed += run.layers
        self.epoch += 1

    def abandon(self, run: Run) -> None:
        """Take the layers back from a node that has gone, or takes too long."""
        del self.running[run.epoch]
        # In sequence again, because `left[0]` is what runs next in sequential order.
        self.left = sorted([*self.left, *run.layers])

    def give_up(self, layers: Sequence[int]) -> None:
        """Do without layers."""
        self.missed += layers
        self.left = [layer for layer in self.left if layer not in layers]
