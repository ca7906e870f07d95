"""What a router knows of a node."""

from collections import deque
from collections.abc import Hashable, Iterable

from layershuffle.serving.actions import Task

Place = int | tuple[int]
"""A queue: that of a layer, by its index, or that of a node, by (its number,)."""


class Node:
    """What a router knows of a node.

    Attributes:
        key: what the driver calls it.
        number: nodes are numbered as they joined.
        layers: the layers that it holds, a set that keeps the sequence in which it got them.
        estimate: the seconds that it is expected to take for a layer.
        task: what it was told last and hasn't answered, or None.
        told: when it was told that.
        to_load: the layers that it is to load after its task.
        places: the queues that it serves.
        planned: how many layers of how many requests it is to run, by their paths.
        suspected: whether it gets no work until it answers.
        epoch: counts up whenever it begins or ends something.
    """

    __slots__ = (
        "epoch", "estimate", "key", "layers", "number", "places", "planned", "suspected", "task", "to_load", "told"
    )  # fmt: skip

    def __init__(self, key: Hashable, number: int, layers: Iterable[int], estimate: float) -> None:
        self.key = key
        self.number = number
        self.layers = dict.fromkeys(layers)
        self.estimate = estimate
        self.task: Task | None = None
        self.told = 0.0
        self.to_load: deque[int] = deque()
        self.places: list[Place] = []
        self.planned = 0
        self.suspected = False
        self.epoch = 0

    @property
    def own_place(self) -> Place:
        """The queue of the requests that wait for this node alone."""
        return (self.number,)

    def learn(self, seconds_per_layer: float) -> None:
        """Move the estimate towards what it took for a layer this time.

        A moving average forgets: a node that was busy with something else for a while isn't taken for slow for ever.
        """
        self.estimate += 0.2 * (seconds_per_layer - self.estimate)
