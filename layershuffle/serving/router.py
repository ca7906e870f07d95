"""Decides which idle node runs which remaining layers of which request.

The router knows no engine and no clock. A driver, which is the Ray cluster or the simulator, tells it what happened and
when, in seconds on any clock that doesn't go backwards, and does what the router returns.

- A *layer* is the index of a step in the model's base order. A node is a *holder* of the layers that it has loaded.
- A *place* is a queue, of a layer or of a single node. Requests wait there for idle nodes, and idle nodes wait for
  requests.
- An *epoch* counts up whenever a request or a node moves on. What was queued in an earlier epoch is void, so nothing
  has to be searched for and removed.

Each event costs O(layers * log(nodes + requests)), but for the loss of a layer's last holder and the choice of a path,
which cost O(nodes).
"""

import math
import random
from collections.abc import Hashable, Iterable, Iterator
from heapq import heappop, heappush
from itertools import takewhile

from layershuffle.serving.actions import Action, Ended, Load, Run, Task
from layershuffle.serving.holders import Holders
from layershuffle.serving.node import Node
from layershuffle.serving.policy import Policy
from layershuffle.serving.priority_queue import PriorityQueue
from layershuffle.serving.queues import Queues
from layershuffle.serving.request import Request
from layershuffle.serving.routes import Routes


class Router:
    """Routes requests through the layers of a model, whatever happens to the nodes.

    The methods that return actions tell the driver what to do, in this sequence, and take it for begun already.

    A request ends exactly once. A layer never counts twice for it: only the answer to the layer's latest ``Run``
    counts, and others are dropped and counted in ``late``. Whatever is told to run reads the newest state of its
    request, which is that after the last answer that counted.

    Args:
        depth: the number of layers, which are the steps of the model's base order.
        policy: how to route.
        seed: decides the random choices of the policy "chain".

    Attributes:
        late: how many answers came too late to count.
    """

    def __init__(self, depth: int, policy: Policy, seed: int = 0) -> None:
        self.depth = depth
        self.policy = policy
        self.late = 0
        self._holders = Holders(depth)
        self._routes = Routes(policy.routing, self._holders, random.Random(seed))
        self._nodes: dict[Hashable, Node] = {}
        self._nodes_joined = 0
        self._requests: dict[int, Request] = {}
        self._queues = Queues()

        # What is due when. A request ends when it is due, in whatever epoch it is then: a plain heap holds its number.
        self._step_deadlines: PriorityQueue[Node] = PriorityQueue()
        self._patience: PriorityQueue[Request] = PriorityQueue()
        self._due: list[tuple[float, int]] = []

    # --- What happened ---------------------------------------------------------------------------------------

    def submit(self, request: int, now: float, arrived: float | None = None) -> list[Action]:
        """A request has come. Its number is higher than those of the requests before it.

        Args:
            request: its number.
            now: the time.
            arrived: when its caller began to wait for the answer that is due by ``Policy.answer_by``; by default now.
        """
        actions: list[Action] = []
        if arrived is None:
            arrived = now
        due = math.inf
        if self.policy.answer_by is not None:
            due = arrived + self.policy.answer_by
        submitted = Request(request, self.depth, now, due)
        self._requests[request] = submitted
        heappush(self._due, (min(due, now + self.policy.request_deadline), request))
        self._proceed(submitted, now, actions)
        return actions

    def join(self, node: Hashable, layers: Iterable[int], estimate: float, now: float) -> list[Action]:
        """A node has come that holds ``layers`` and is expected to take ``estimate`` seconds for a layer.

        One that is already known is taken to have been lost in between.
        """
        actions = self.lose(node, now)
        self._nodes_joined += 1
        joined = Node(node, self._nodes_joined, layers, estimate)
        self._nodes[node] = joined
        self._holders.add(joined)
        # There may be lost layers that no node was left to load. If this one is chosen, it has a task already.
        self._load_lost_layers(now, actions)
        if joined.task is None:
            self._assign(joined, now, actions)
        return actions

    def lose(self, node: Hashable, now: float) -> list[Action]:
        """A node has gone."""
        actions: list[Action] = []
        lost = self._nodes.pop(node, None)
        if lost is not None:
            self._withdraw(lost, now, actions)
        return actions

    def answered(self, task: Task, now: float) -> list[Action]:
        """A node has done what it was told. An answer that comes too late to count still shows that the node lives."""
        actions: list[Action] = []
        node = self._nodes.get(task.node)
        # If the node was lost or suspected in between, its run has been withdrawn, and this answer comes too late.
        if isinstance(task, Run):
            self._take_answer(task, node, now, actions)

        # The node has work already if it was told something else since, or if another one has joined under its name.
        if node is not None and node.task is task:
            if isinstance(task, Load):
                self._holders.loaded(node, task.layer)
            self._assign(node, now, actions)
        return actions

    def cancel(self, request: int, now: float) -> list[Action]:
        """Nobody waits for a request any more, or it can't be run: it fails."""
        actions: list[Action] = []
        cancelled = self._requests.get(request)
        if cancelled is not None:
            self._end(cancelled, now, actions, failed=True)
        return actions

    def suspect(self, node: Hashable, now: float) -> list[Action]:
        """A node can't be reached, which needn't mean that it is gone. It gets no work until it answers."""
        actions: list[Action] = []
        suspect = self._nodes.get(node)
        if suspect is not None and not suspect.suspected:
            suspect.suspected = True
            self._withdraw(suspect, now, actions)
        return actions

    def recover(self, node: Hashable, now: float) -> list[Action]:
        """A suspected node can be reached again; what it was told last won't be answered."""
        actions: list[Action] = []
        suspect = self._nodes.get(node)
        if suspect is not None and suspect.suspected:
            self._assign(suspect, now, actions)
        return actions

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines may have come, and patience may have run out."""
        actions: list[Action] = []
        # To suspect a node moves its epoch on, and so takes it out of the queue of deadlines.
        while (node := self._step_deadlines.first_due(now)) is not None:
            actions += self.suspect(node.key, now)
        while (request := self._patience.first_due(now)) is not None:
            self._lose_patience(request, now, actions)
        while self._due and self._due[0][0] <= now:
            _, number = heappop(self._due)
            if number in self._requests:
                self._end_due(self._requests[number], now, actions)
        return actions

    # --- What is known ---------------------------------------------------------------------------------------

    def next_time(self) -> float:
        """When ``tick`` has something to do, unless something else happens before; infinity if never."""
        # Requests that have ended stay in the heap until they come first.
        while self._due and self._due[0][1] not in self._requests:
            heappop(self._due)
        due = self._due[0][0] if self._due else math.inf
        return min(self._step_deadlines.first_priority(), self._patience.first_priority(), due)

    def is_current(self, run: Run) -> bool:
        """Whether the answer to ``run`` counts, if it comes now."""
        request = self._requests.get(run.request)
        return request is not None and run.epoch in request.running

    def nodes(self) -> Iterator[Node]:
        """The nodes that haven't been lost, as they joined. They are the router's: don't change them."""
        yield from self._nodes.values()

    # --- Requests --------------------------------------------------------------------------------------------

    def _proceed(self, request: Request, now: float, actions: list[Action]) -> None:
        """Let a request run on as many idle nodes as it may be at, or else wait, or end if nothing is left."""
        while request.left and len(request.running) < self.policy.width:
            places = self._routes.places(request)
            node = self._queues.idle_node(places, request, now)
            if node is None:
                # It waits in all of these places, and the first node to be idle in one of them takes it.
                self._queues.wait(request, places)
                # While some node runs it, the request loses no time, so that its patience needn't run out.
                if self.policy.on_loss == "skip" and not request.running:
                    self._patience.push(now + self.policy.patience, request)
                return
            self._run(node, request, now, actions)
        if not request.left and not request.running:
            self._end(request, now, actions)

    def _lose_patience(self, request: Request, now: float, actions: list[Action]) -> None:
        """Let a request do without what it waits for, or if it would miss too much then, wait on."""
        request.epoch += 1
        # Nobody has been idle for what could run next, for as long as its patience lasts.
        hopeless = self._routes.next_layers(request)
        if len(request.missed) + len(hopeless) <= self.policy.max_missed:
            self._routes.leave_path(request, hopeless)
            request.give_up(hopeless)
            self._proceed(request, now, actions)
        else:
            self._queues.wait(request, self._routes.places(request))

    def _take_answer(self, run: Run, node: Node | None, now: float, actions: list[Action]) -> None:
        """Count what a node has run, if it still counts, and let the request go on."""
        if not self.is_current(run):
            self.late += 1
            return
        request = self._requests[run.request]
        request.finish(run)
        self._routes.leave_path(request, run.layers)
        if node is not None:
            node.learn((now - node.told) / len(run.layers))
        self._proceed(request, now, actions)

    def _end_due(self, request: Request, now: float, actions: list[Action]) -> None:
        """Answer a request with what has come, or let it fail."""
        if self.policy.answer_by is None:
            self._end(request, now, actions, failed=True)
            return
        # What still runs comes too late: its layers count as missed.
        for run in [*request.running.values()]:
            request.abandon(run)
        request.give_up(request.left)
        self._end(request, now, actions)

    def _end(self, request: Request, now: float, actions: list[Action], failed: bool = False) -> None:
        """Hand a request back. What nodes still run for it comes too late from now on."""
        del self._requests[request.number]
        self._routes.leave_path(request, [*request.path])
        request.epoch += 1  # It leaves all queues.
        seconds = now - request.submitted
        actions.append(Ended(request.number, request.order, tuple(request.missed), seconds, failed))

    # --- Nodes -----------------------------------------------------------------------------------------------

    def _assign(self, node: Node, now: float, actions: list[Action]) -> None:
        """Let a node that has nothing to do load a layer, or run the oldest request, or else be idle."""
        # One that was suspected counts as a holder again, and one that has answered a Load holds one layer more.
        self._holders.add(node)
        if node.suspected:
            # It lives after all. There may be lost layers that no node was left to load, and this one may be chosen.
            earlier_task = node.task
            node.suspected = False
            self._load_lost_layers(now, actions)
            # If it was idle before, it may have been told to load one just now.
            if node.task is not earlier_task:
                return
        node.task = None
        node.epoch += 1
        node.places = self._routes.places_of(node)

        if node.to_load:
            self._tell(node, Load(node.key, node.to_load.popleft()), now, actions)
            return

        oldest = self._queues.oldest_request(node, now)
        if oldest is None:
            self._queues.rest(node)
            return
        self._run(node, oldest, now, actions)
        # The new epoch has taken the request out of all queues. If more nodes may run it, it waits for them again.
        self._proceed(oldest, now, actions)

    def _run(self, node: Node, request: Request, now: float, actions: list[Action]) -> None:
        """Let a node run layers of a request, as many in a row as the policy allows."""
        if self.policy.routing == "any":
            layers = [layer for layer in request.left if layer in node.layers]
        else:
            # In sequence, a layer that the node lacks ends the visit.
            layers = list(takewhile(lambda layer: layer in node.layers, request.left))
        visit = tuple(layers[: self.policy.visit])

        # Both leave all the queues in which they wait.
        request.epoch += 1
        node.epoch += 1
        run = Run(node.key, request.number, request.epoch, visit, len(request.executed))
        request.begin(run)
        self._tell(node, run, now, actions)

    def _tell(self, node: Node, task: Task, now: float, actions: list[Action]) -> None:
        """Tell a node what to do, which it must answer by its deadline."""
        node.task = task
        node.told = now
        self._step_deadlines.push(now + self.policy.step_deadline, node)
        actions.append(task)

    def _withdraw(self, node: Node, now: float, actions: list[Action]) -> None:
        """Do without a node that is lost or suspected."""
        node.epoch += 1
        # This comes first, or a request that has to go elsewhere could be sent to this node again.
        self._holders.remove(node)

        # Stranded are the requests that wait for this node alone, and the one that it runs.
        stranded = {request.number: request for request in self._queues.close(node.own_place)}
        if isinstance(node.task, Run) and self.is_current(node.task):
            request = self._requests[node.task.request]
            request.abandon(node.task)
            stranded[request.number] = request

        self._load_lost_layers(now, actions)
        # The oldest first, as everywhere.
        for _, request in sorted(stranded.items()):
            request.epoch += 1
            self._proceed(request, now, actions)

    def _load_lost_layers(self, now: float, actions: list[Action]) -> None:
        """Let nodes load the layers that were lost."""
        if self.policy.on_loss != "reassign":
            return
        for node in self._holders.assign_lost_layers(self._nodes.values()):
            # A busy node loads once it has answered. A node that is chosen for several layers is told of one at a time.
            if node.task is None:
                self._assign(node, now, actions)
