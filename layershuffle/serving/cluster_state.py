"""The nodes and the queue of a cluster at one moment."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from layershuffle.serving.actions import Run
from layershuffle.serving.node import Node

Status = Literal["idle", "busy", "suspected", "gone"]


@dataclass(frozen=True)
class NodeState:
    """A node at one moment.

    Attributes:
        node: its name.
        process: the id of its process.
        status: what it does; "suspected" if it hasn't answered in time.
        steps: the steps that it holds, by their indices in the model's base order.
        runs: those that it runs now.
        seconds: what it is expected to take for a step; None if it has gone.
    """

    node: str
    process: int | None
    status: Status
    steps: list[int]
    runs: list[int]
    seconds: float | None

    @classmethod
    def of(cls, node: Node, process: int | None) -> "NodeState":
        """The state of one of the router's nodes."""
        status: Status = "idle"
        if node.suspected:
            status = "suspected"
        elif node.task:
            status = "busy"
        runs = list(node.task.layers) if isinstance(node.task, Run) else []
        return cls(str(node.key), process, status, list(node.layers), runs, round(node.estimate, 4))

    @classmethod
    def gone(cls, name: str, process: int) -> "NodeState":
        """The state of a node that has gone."""
        return cls(name, process, "gone", [], [], None)


@dataclass(frozen=True)
class ClusterState:
    """A cluster at one moment.

    Attributes:
        steps: how many steps the model's base order has.
        nodes: the nodes as they joined, then those that have gone.
        in_flight: how many requests run.
        waiting: how many wait for the window.
        rate: how many requests ended in a second, over the last five.
        late: how many answers of nodes came too late to count.
        ended: how many requests were answered.
        failed: how many failed.
        missed: how many layers all of them did without.
        runs: how many runs of nodes were answered.
        bytes: how many bytes have travelled to nodes and back.
    """

    steps: int
    nodes: list[NodeState]
    in_flight: int
    waiting: int
    rate: float
    late: int
    ended: int
    failed: int
    missed: int
    runs: int
    bytes: int

    def to_json(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)
