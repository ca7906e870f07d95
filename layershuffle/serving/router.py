"""Decides which idle node runs which remaining layers of which request.

The router knows no engine and no clock. A driver, which is the Ray cluster or the simulator, tells it what happened and
when, in seconds on any clock that doesn't go backwards, and does what the router returns. A layer here is the index of
a step in the model's base order. Each event costs O(layers * log(nodes + requests)), but for the loss of a
layer's last holder and the choice of a path, which cost O(nodes).
"""

import random
from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import takewhile
from typing import Any, Literal, NamedTuple, get_args

from layershuffle.errors import UserError

Routing = Literal["any", "sequential", "chain", "path"]
OnLoss = Literal["reassign", "skip"]


@dataclass(frozen=True)
class Policy:
    """How requests are routed. Times are in seconds.

    Attributes:
        routing: "any" runs whichever remaining layer has an idle node, "sequential" the next layer in order on an idle
            node. In both, an idle node takes the oldest request. "chain" runs the next layer on a node that is drawn at
            random by speed and waits for it, as the chains of Petals (arXiv 2209.01188) do. "path" chooses such a chain
            when the request comes, the one with the least estimated time if all requests that are on their way to
            its nodes go first, and chooses again for the layers that are left when the next node is gone.
        on_loss: what happens to a layer whose last holder is lost. With "reassign" another node loads it. With "skip" a
            request does without it.
        max_missed: with "skip", how many layers a request may miss.
        patience: with "skip", the seconds that a request waits before it gives up what it waits for: in sequence the
            next layer, in any order all that are left.
        step_deadline: the seconds after which a node that hasn't answered is suspected. Its step then runs elsewhere,
            and it gets no work until it answers.
        request_deadline: the seconds after which a request fails.
        visit: how many layers a node may run in a row for a request, if it holds several that the request can run.
    """

    routing: Routing = "any"
    on_loss: OnLoss = "reassign"
    max_missed: int = 3
    patience: float = 1.0
    step_deadline: float = 10.0
    request_deadline: float = 60.0
    visit: int = 1

    def __post_init__(self) -> None:
        if self.routing not in get_args(Routing) or self.on_loss not in get_args(OnLoss):
            raise UserError(
                f"routing is one of {', '.join(get_args(Routing))} and on_loss one of {', '.join(get_args(OnLoss))}, "
                f"not {self.routing} and {self.on_loss}"
            )
        if self.max_missed < 0 or self.visit < 1 or min(self.patience, self.step_deadline, self.request_deadline) < 0:
            raise UserError("max_missed, patience and the deadlines are 0 or more, and visit is 1 or more")


class Run(NamedTuple):
    """To do: let ``node`` run ``layers`` on the current input of ``request``; the first holds ``position``."""

    node: Hashable
    request: int
    epoch: int
    layers: tuple[int, ...]
    position: int


class Load(NamedTuple):
    """To do: let ``node`` load ``layer`` besides those that it holds."""

    node: Hashable
    layer: int


class Ended(NamedTuple):
    """To do: hand a request back to its caller.

    Attributes:
        request: its number.
        order: the layers that ran, in the order in which they ran.
        missed: the layers that it did without.
        seconds: the time since it was submitted.
        failed: whether its deadline came before it was done.
    """

    request: int
    order: tuple[int, ...]
    missed: tuple[int, ...]
    seconds: float
    failed: bool


Action = Run | Load | Ended


class NodeState(NamedTuple):
    """What is known of a node: the layers that it holds, the seconds that it takes for one, and what it was told."""

    node: Hashable
    layers: tuple[int, ...]
    estimate: float
    task: Run | Load | None
    suspected: bool


class _Request:
    __slots__ = ("chain", "epoch", "executed", "left", "missed", "number", "path", "submitted")

    def __init__(self, number: int, depth: int, now: float) -> None:
        self.number, self.submitted = number, now
        self.left = list(range(depth))
        self.executed: list[int] = []
        self.missed: list[int] = []
        self.epoch = 0  # counts up whenever it begins to run or to wait, or is answered
        self.chain: _Node | None = None
        self.path: dict[int, _Node] = {}  # the nodes that are to run the layers that are left


class _Node:
    __slots__ = (
        "epoch", "estimate", "key", "layers", "loads", "number", "places", "planned", "since", "suspected", "task"
    )  # fmt: skip

    def __init__(self, key: Hashable, number: int, layers: Iterable[int], estimate: float) -> None:
        self.key, self.number, self.estimate = key, number, estimate
        self.layers = dict.fromkeys(layers)  # a set that keeps the sequence
        self.places: list[Hashable] = []  # the queues that it serves, see Router._places
        self.planned = 0  # how many layers of how many requests it is to run, by their paths
        self.epoch = 0  # counts up whenever it begins or ends something
        self.task: Run | Load | None = None
        self.since = 0.0
        self.loads: deque[int] = deque()
        self.suspected = False


class _Heap:
    """Requests or nodes by priority. Those whose epoch has changed since they were pushed are dropped when met."""

    __slots__ = ("entries", "limit")

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, int, Any]] = []
        self.limit = 64

    def push(self, priority: float, thing: Any) -> None:
        if len(self.entries) >= self.limit:  # Clear out what is outdated, so that a queue nobody serves can't grow.
            self.entries = [entry for entry in self.entries if entry[3].epoch == entry[2]]
            heapify(self.entries)
            self.limit = 64 + 2 * len(self.entries)
        heappush(self.entries, (priority, thing.number, thing.epoch, thing))

    def first(self) -> Any:
        """The thing with the lowest priority, or None."""
        entries = self.entries
        while entries and entries[0][3].epoch != entries[0][2]:
            heappop(entries)
        return entries[0][3] if entries else None

    def due(self, now: float) -> Any:
        """``first``, if its priority is a time that has come, else None."""
        first = self.first()
        return first if first is not None and self.entries[0][0] <= now else None


class _Holders:
    """The nodes that hold a layer and aren't suspected: a set from which one can be drawn."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.index: dict[_Node, int] = {}
        self.fastest = float("inf")

    def add(self, node: _Node) -> None:
        if node not in self.index:
            self.index[node] = len(self.nodes)
            self.nodes.append(node)

    def discard(self, node: _Node) -> None:
        if (at := self.index.pop(node, None)) is not None:
            last = self.nodes.pop()
            if last is not node:
                self.nodes[at] = last
                self.index[last] = at

    def draw(self, rng: random.Random) -> _Node | None:
        """A node with a probability proportional to its speed, by rejection."""
        for _ in range(100):
            if not self.nodes:
                break
            node = self.nodes[int(rng.random() * len(self.nodes))]
            self.fastest = min(self.fastest, node.estimate)
            if rng.random() * node.estimate <= self.fastest:
                return node
        return self.nodes[0] if self.nodes else None


class Router:
    """Routes requests through the layers of a model, whatever happens to the nodes.

    A request ends exactly once. A layer never counts twice for it: only the answer to its latest ``Run`` counts, and
    others are dropped and counted in ``late``.

    Args:
        depth: the number of layers, which are the steps of the model's base order.
        policy: how to route.
        seed: decides the random choices of the policy "chain".
    """

    def __init__(self, depth: int, policy: Policy, seed: int = 0) -> None:
        self.depth, self.policy, self.late = depth, policy, 0
        self._rng = random.Random(seed)
        self._nodes: dict[Hashable, _Node] = {}
        self._requests: dict[int, _Request] = {}
        self._waiting: defaultdict[Hashable, _Heap] = defaultdict(_Heap)
        self._idle: defaultdict[Hashable, _Heap] = defaultdict(_Heap)
        self._holders = [_Holders() for _ in range(depth)]
        self._lost: set[int] = set()  # the layers that were held once, and aren't any more
        self._loading: dict[int, _Node] = {}
        self._step_deadlines, self._patience = _Heap(), _Heap()
        self._request_deadlines: deque[tuple[float, _Request]] = deque()
        self._joined = 0

    # --- What happened ---------------------------------------------------------------------------------------

    def submit(self, request: int, now: float) -> list[Action]:
        """A request has come. Its number is higher than those of the requests before it."""
        made = self._requests[request] = _Request(request, self.depth, now)
        self._request_deadlines.append((now + self.policy.request_deadline, made))
        out: list[Action] = []
        self._proceed(made, now, out)
        return out

    def join(self, node: Hashable, layers: Iterable[int], estimate: float, now: float) -> list[Action]:
        """A node has come that holds ``layers`` and is expected to take ``estimate`` seconds for a layer.

        One that is already known is taken to have been lost in between.
        """
        out = self.lose(node, now)
        self._joined += 1
        made = self._nodes[node] = _Node(node, self._joined, layers, estimate)
        self._hold(made)
        self._rehome(now, out)
        if made.task is None:
            self._free(made, now, out)
        return out

    def lose(self, node: Hashable, now: float) -> list[Action]:
        """A node has gone."""
        out: list[Action] = []
        if (lost := self._nodes.pop(node, None)) is not None:
            self._withdraw(lost, now, out)
        return out

    def answered(self, task: Run | Load, now: float) -> list[Action]:
        """A node has done what it was told. An answer that comes too late to count may still tell that it lives."""
        out: list[Action] = []
        node = self._nodes.get(task.node)
        known = node is not None and node.task is task
        if isinstance(task, Run):
            if self.is_current(task):
                request = self._requests[task.request]
                request.executed += task.layers
                self._leave_path(request, task.layers)
                request.left = [layer for layer in request.left if layer not in task.layers]
                request.epoch += 1
                if node is not None:
                    node.estimate += 0.2 * ((now - node.since) / len(task.layers) - node.estimate)
                self._proceed(request, now, out)
            else:
                self.late += 1
        elif known and node is not None:
            node.layers[task.layer] = None
            if self._loading.get(task.layer) is node:
                del self._loading[task.layer]
        if known and node is not None:
            self._free(node, now, out)
        return out

    def cancel(self, request: int, now: float) -> list[Action]:
        """Nobody waits for a request any more, or it can't be run: it fails."""
        out: list[Action] = []
        if (found := self._requests.get(request)) is not None:
            self._end(found, now, out, failed=True)
        return out

    def suspect(self, node: Hashable, now: float) -> list[Action]:
        """A node can't be reached, which needn't mean that it is gone. It gets no work until it answers."""
        out: list[Action] = []
        if (found := self._nodes.get(node)) is not None and not found.suspected:
            found.suspected = True
            self._withdraw(found, now, out)
        return out

    def recover(self, node: Hashable, now: float) -> list[Action]:
        """A suspected node can be reached again; what it was told last won't be answered."""
        out: list[Action] = []
        if (found := self._nodes.get(node)) is not None and found.suspected:
            self._free(found, now, out)
        return out

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines may have come, and patience may have run out."""
        out: list[Action] = []
        while (node := self._step_deadlines.due(now)) is not None:
            out += self.suspect(node.key, now)
        while (request := self._patience.due(now)) is not None:
            request.epoch += 1
            given_up = self._can_run_next(request)
            if len(request.missed) + len(given_up) <= self.policy.max_missed:
                request.missed += given_up
                self._leave_path(request, given_up)
                request.left = request.left[len(given_up) :]
                self._proceed(request, now, out)
            else:
                self._wait(request, self._places(request))
        while self._request_deadlines and self._request_deadlines[0][0] <= now:
            request = self._request_deadlines.popleft()[1]
            if request.number in self._requests:
                self._end(request, now, out, failed=True)
        return out

    # --- What is known ---------------------------------------------------------------------------------------

    def next_time(self) -> float:
        """When ``tick`` has something to do, unless something else happens before; infinity if never."""
        times = [heap.entries[0][0] for heap in (self._step_deadlines, self._patience) if heap.first() is not None]
        while self._request_deadlines and self._request_deadlines[0][1].number not in self._requests:
            self._request_deadlines.popleft()
        if self._request_deadlines:
            times.append(self._request_deadlines[0][0])
        return min(times, default=float("inf"))

    def is_current(self, run: Run) -> bool:
        """Whether the answer to ``run`` counts, if it comes now."""
        request = self._requests.get(run.request)
        return request is not None and request.epoch == run.epoch

    def nodes(self) -> Iterator[NodeState]:
        """The nodes that haven't been lost, as they joined."""
        for node in self._nodes.values():
            yield NodeState(node.key, tuple(node.layers), node.estimate, node.task, node.suspected)

    # --- How it decides --------------------------------------------------------------------------------------

    def _can_run_next(self, request: _Request) -> list[int]:
        return request.left if self.policy.routing == "any" else request.left[:1]

    def _places(self, request: _Request) -> list[Hashable]:
        """The queues in which a request waits: those of layers, or in a chain or on a path that of a node."""
        layer, node = request.left[0], None
        if self.policy.routing == "chain":
            if request.chain not in self._holders[layer].index:
                request.chain = self._holders[layer].draw(self._rng)
            node = request.chain
        elif self.policy.routing == "path":
            if request.path.get(layer) not in self._holders[layer].index:
                self._choose_path(request)
            node = request.path.get(layer)
        return list(self._can_run_next(request)) if node is None else [(node.number,)]

    def _choose_path(self, request: _Request) -> None:
        """Choose the nodes that are to run what is left; in O(nodes). A path's time is the sum of its nodes' times."""
        self._leave_path(request, request.left)
        for layer in request.left:
            if nodes := self._holders[layer].nodes:
                node = request.path[layer] = min(nodes, key=lambda node: node.estimate * (1 + node.planned))
                node.planned += 1

    def _leave_path(self, request: _Request, layers: Iterable[int]) -> None:
        for layer in layers:
            if (node := request.path.pop(layer, None)) is not None:
                node.planned -= 1

    def _proceed(self, request: _Request, now: float, out: list[Action]) -> None:
        """Let a request run on an idle node, or else wait, or end if nothing is left."""
        if not request.left:
            self._end(request, now, out)
            return
        places, chosen = self._places(request), None
        for place in places:
            node = self._idle[place].first()
            if node is not None and (chosen is None or node.estimate > chosen.estimate):
                chosen = node
        if chosen is not None:
            self._run(chosen, request, now, out)
            return
        self._wait(request, places)
        if self.policy.on_loss == "skip":
            self._patience.push(now + self.policy.patience, request)

    def _wait(self, request: _Request, places: list[Hashable]) -> None:
        for place in places:
            self._waiting[place].push(request.number, request)

    def _free(self, node: _Node, now: float, out: list[Action]) -> None:
        """Let a node that has nothing to do load a layer, or run the oldest request, or else be idle."""
        self._hold(node)
        if node.suspected:
            node.suspected, told = False, node.task
            self._rehome(now, out)
            if node.task is not told:
                return  # It was idle, and is to load a layer now.
        node.task = None
        node.epoch += 1
        node.places = [*node.layers, (node.number,)] if self.policy.routing in ("chain", "path") else [*node.layers]
        if node.loads:
            node.task = Load(node.key, node.loads.popleft())
            self._step_deadlines.push(now + self.policy.step_deadline, node)
            out.append(node.task)
            return
        oldest = None
        for place in node.places:
            request = self._waiting[place].first()
            if request is not None and (oldest is None or request.number < oldest.number):
                oldest = request
        if oldest is not None:
            self._run(node, oldest, now, out)
            return
        for place in node.places:
            self._idle[place].push(node.estimate, node)

    def _hold(self, node: _Node) -> None:
        for layer in node.layers:
            self._holders[layer].add(node)
            self._lost.discard(layer)

    def _run(self, node: _Node, request: _Request, now: float, out: list[Action]) -> None:
        if self.policy.routing == "any":
            layers = [layer for layer in request.left if layer in node.layers]
        else:
            layers = [*takewhile(node.layers.__contains__, request.left)]
        request.epoch += 1
        node.epoch += 1
        node.since = now
        visit = tuple(layers[: self.policy.visit])
        node.task = Run(node.key, request.number, request.epoch, visit, len(request.executed))
        self._step_deadlines.push(now + self.policy.step_deadline, node)
        out.append(node.task)

    def _withdraw(self, node: _Node, now: float, out: list[Action]) -> None:
        """Do without a node that is lost or suspected."""
        node.epoch += 1
        for layer in node.layers:
            self._holders[layer].discard(node)
            if not self._holders[layer].nodes:
                self._lost.add(layer)
        node.loads.clear()
        self._loading = {layer: loader for layer, loader in self._loading.items() if loader is not node}
        self._idle.pop((node.number,), None)
        left_behind = self._waiting.pop((node.number,), _Heap()).entries
        stranded = [request for *_, epoch, request in left_behind if request.epoch == epoch]
        if isinstance(node.task, Run) and self.is_current(node.task):
            stranded.append(self._requests[node.task.request])
        self._rehome(now, out)
        for request in sorted(stranded, key=lambda request: request.number):
            request.epoch += 1
            self._proceed(request, now, out)

    def _rehome(self, now: float, out: list[Action]) -> None:
        """Let nodes load the layers that were lost."""
        if self.policy.on_loss != "reassign":
            return
        chosen: list[_Node] = []
        for layer in sorted(self._lost - self._loading.keys()):
            able = [node for node in self._nodes.values() if not node.suspected]
            if not able:
                return
            node = min(able, key=lambda node: (len(node.layers) + len(node.loads), node.estimate))
            self._loading[layer] = node
            node.loads.append(layer)
            chosen.append(node)
        for node in chosen:
            if node.task is None:
                self._free(node, now, out)

    def _end(self, request: _Request, now: float, out: list[Action], failed: bool = False) -> None:
        del self._requests[request.number]
        self._leave_path(request, request.left)
        request.epoch += 1
        order, missed = tuple(request.executed), tuple(request.missed)
        out.append(Ended(request.number, order, missed, now - request.submitted, failed))
