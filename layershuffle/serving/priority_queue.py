"""A priority queue of things that may have moved on since they were pushed."""

import math
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar


class Numbered(Protocol):
    """What can be queued: its number decides between equal priorities, and its epoch counts up when it moves on."""

    number: int
    epoch: int


T = TypeVar("T", bound=Numbered)


class PriorityQueue(Generic[T]):
    """Requests or nodes by priority, the lowest first. Those whose epoch has changed since are dropped when met.

    So nothing has to be looked for and removed when a request leaves all the queues in which it waits.
    """

    __slots__ = ("entries", "limit")

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, int, T]] = []  # priority, number, epoch when pushed, request or node
        self.limit = 64

    def push(self, priority: float, item: T) -> None:
        """Queue a request or a node."""
        # Clear out what is outdated now and then, so that a queue nobody serves can't grow.
        if len(self.entries) >= self.limit:
            self.entries = [entry for entry in self.entries if _is_current(entry)]
            heapify(self.entries)
            # Not again before as many pushes as entries are left now, so that a push costs little on average.
            self.limit = 64 + 2 * len(self.entries)
        heappush(self.entries, (priority, item.number, item.epoch, item))

    def first(self) -> T | None:
        """The item with the lowest priority, or None."""
        entries = self.entries
        while entries:
            _, _, epoch, item = entries[0]
            if item.epoch == epoch:
                return item
            heappop(entries)
        return None

    def drop_first(self) -> None:
        """Remove what ``first`` has returned."""
        heappop(self.entries)

    def first_priority(self) -> float:
        """The lowest priority, or infinity."""
        if self.first() is None:
            return math.inf
        return self.entries[0][0]

    def first_due(self, now: float) -> T | None:
        """``first``, if its priority is a time that has come, else None."""
        first = self.first()
        if first is None or self.entries[0][0] > now:
            return None
        return first

    def items(self) -> list[T]:
        """All that is queued, in no certain order."""
        return [item for _, _, epoch, item in self.entries if item.epoch == epoch]


def _is_current(entry: tuple[float, int, int, Numbered]) -> bool:
    """Whether what an entry holds has not moved on since it was pushed."""
    _, _, epoch, item = entry
    return item.epoch == epoch
