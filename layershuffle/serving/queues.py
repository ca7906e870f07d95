"""Who waits where: requests for nodes, and idle nodes for requests."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from layershuffle.serving.node import Node, Place
from layershuffle.serving.priority_queue import PriorityQueue
from layershuffle.serving.request import Request


class Queues:
    """By place: the requests that wait there, the oldest first, and the nodes that are idle, the fastest first."""

    def __init__(self) -> None:
        self._waiting: defaultdict[Place, PriorityQueue[Request]] = defaultdict(PriorityQueue)
        self._idle: defaultdict[Place, PriorityQueue[Node]] = defaultdict(PriorityQueue)

    def wait(self, request: Request, places: Iterable[Place]) -> None:
        """A request waits in these places, until its epoch changes."""
        for place in places:
            self._waiting[place].push(request.number, request)

    def rest(self, node: Node) -> None:
        """A node is idle in the places that it serves, until its epoch changes."""
        for place in node.places:
            self._idle[place].push(node.estimate, node)

    def idle_node(self, places: Sequence[Place], request: Request, now: float) -> Node | None:
        """The idle node that is to run next for a request: one that serves one of ``places``, and ends in time."""
        # Each place offers its fastest idle node. Of these the slowest one runs: its layer takes longest in any case.
        slowest = None
        for place in places:
            node = self._idle[place].first()
            if node is None or not request.would_count(node, now):
                continue
            if slowest is None or node.estimate > slowest.estimate:
                slowest = node
        return slowest

    def oldest_request(self, node: Node, now: float) -> Request | None:
        """The oldest request that a node can run, and for which its answer would count."""
        oldest = None
        for place in node.places:
            request = self._oldest_in_time(place, node, now)
            if request is not None and (oldest is None or request.number < oldest.number):
                oldest = request
        return oldest

    def _oldest_in_time(self, place: Place, node: Node, now: float) -> Request | None:
        """The oldest request in one place that this node can answer before it is due."""
        queue = self._waiting[place]
        oldest = queue.first()
        too_late = []
        while oldest is not None and not oldest.would_count(node, now):
            queue.drop_first()
            too_late.append(oldest)
            oldest = queue.first()
        # Another node may be faster.
        for request in too_late:
            queue.push(request.number, request)
        return oldest

    def close(self, place: Place) -> list[Request]:
        """Do without a place, which was that of a node; returns the requests that wait there."""
        self._idle.pop(place, None)
        waiting = self._waiting.pop(place, None)
        return [] if waiting is None else waiting.items()
