"""The router on simulated time: thousands of nodes that differ in speed, go away and come back."""

import math
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from layershuffle.orders.order import seeded
from layershuffle.serving.actions import Action, Ended, Load, Run, Task
from layershuffle.serving.ideal import ideal_throughput
from layershuffle.serving.policy import Policy
from layershuffle.serving.router import Router
from layershuffle.serving.scenario import Machine, Scenario, sample_machines


@dataclass(frozen=True)
class Outcome:
    """What a simulation has shown.

    Attributes:
        throughput: requests that ended in a second, those that failed left out. A burst takes its number over this.
        ideal: the bound on it that the nodes' speeds, layers and presence set if no layer is missed, see
            ``ideal_throughput``.
        latency: the median, the 95th and the 99th percentile of the seconds from submission to end; NaN if none ended.
        missed: the mean number of layers that a request did without.
        failed: the share of requests that reached their deadline.
        late: how many answers came too late to count.
        steps: how many steps ran, those of the first quarter included.
    """

    throughput: float
    ideal: float
    latency: tuple[float, float, float]
    missed: float
    failed: float
    late: int
    steps: int

    @property
    def share(self) -> float:
        """The throughput as a share of the ideal; NaN if some layer never had a node, so that the ideal is 0."""
        return self.throughput / self.ideal if self.ideal else math.nan


def simulate(
    scenario: Scenario, policy: Policy, seed: int = 0, on_ended: Callable[[Ended, float], Any] | None = None
) -> Outcome:
    """Simulate ``scenario`` under ``policy``.

    One request per ``window`` and node is in flight: when one ends, the next is submitted, unless requests come at a
    ``rate`` or in a burst.

    Args:
        scenario: the nodes, and the load on them.
        policy: how requests are routed.
        seed: decides all chance. The speeds, lifetimes and absences of the nodes are a function of the seed and the
            scenario alone, the same for every policy.
        on_ended: called with each request that ended, and the time.
    """
    return _Simulation(scenario, policy, seed, on_ended).run()


class _Event(NamedTuple):
    """Something that will happen to a node, unless the node goes before.

    Attributes:
        time: when.
        number: events are numbered as they are scheduled, which decides between those of the same time.
        node: to which node, by its index.
        generation: that of the node when the event was scheduled.
        happen: what to call then.
    """

    time: float
    number: int
    node: int
    generation: int
    happen: Callable[[], None]


class _SimulatedNode:
    """A node of the simulation.

    Attributes:
        machine: what it is.
        is_there: whether it is there; the router may not know yet that it has gone.
        generation: counts up whenever it goes.
        holds: the layers that it holds now.
        since: since when it has held these.
    """

    __slots__ = ("generation", "holds", "is_there", "machine", "since")

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.is_there = False
        self.generation = 0
        self.holds = machine.layers
        self.since = 0.0


class _Simulation:
    """One simulation. Nodes are called by their index, which is also their key in the router."""

    def __init__(
        self, scenario: Scenario, policy: Policy, seed: int, on_ended: Callable[[Ended, float], Any] | None
    ) -> None:
        self.scenario = scenario
        self.on_ended = on_ended
        self.router = Router(scenario.layers, policy, seed)

        # The fate of the nodes has a source of chance of its own, so that it is the same for every policy.
        self.fate = seeded(seed, "nodes")
        self.chance = seeded(seed, "steps")
        self.arrivals = seeded(seed, "arrivals")
        self.nodes = [_SimulatedNode(machine) for machine in sample_machines(scenario, self.fate)]

        self.now = 0.0
        self.warm_up = 0.0 if scenario.burst else scenario.duration / 4
        self.events: list[_Event] = []
        self.event_numbers = count()
        self.request_numbers = count(1)
        self.to_submit = scenario.burst or math.inf
        self.next_arrival = math.inf

        # What is measured after the warm-up.
        self.latencies = array("d")
        self.missed = 0
        self.failed = 0
        self.steps = 0  # these are also counted before
        self.capacity: defaultdict[tuple[int, ...], float] = defaultdict(float)

    def run(self) -> Outcome:
        """Simulate from the beginning to the end."""
        scenario = self.scenario
        self._begin()
        requests = scenario.burst or math.inf
        while len(self.latencies) + self.failed < requests:
            event_time = self.events[0].time if self.events else math.inf
            router_time = self.router.next_time()
            if min(event_time, router_time, self.next_arrival) >= scenario.duration:
                self.now = scenario.duration
                break
            if self.next_arrival < min(event_time, router_time):
                self.now = self.next_arrival
                self._arrive()
                continue
            if router_time < event_time:
                self.now = router_time
                self._perform(self.router.tick(self.now))
                continue
            event = heappop(self.events)
            self.now = event.time
            # A node that has gone since has taken its answer with it.
            if self.nodes[event.node].generation == event.generation:
                event.happen()
        return self._outcome()

    def _begin(self) -> None:
        """Let the nodes come, schedule the kills, and submit the first requests."""
        scenario = self.scenario
        share_there = 1.0
        if scenario.lifetime:
            share_there = scenario.lifetime / (scenario.lifetime + scenario.absence)
        for index in range(scenario.nodes):
            self._come(index)
            if self.fate.random() >= share_there:
                self._go(index)

        measured = scenario.duration - self.warm_up
        for index in range(scenario.kills):
            time = self.warm_up + measured * (index + 1) / (scenario.kills + 1)
            self._schedule(time, index, partial(self._go, index, for_good=True))
        for index in range(scenario.nodes - scenario.stopped, scenario.nodes):
            self._schedule(self.warm_up, index, partial(self._stop, index))

        if scenario.rate:
            self._arrive()
            return
        for _ in range(scenario.burst or max(1, round(scenario.window * scenario.nodes))):
            self._perform(self._submit())

    # --- Nodes -----------------------------------------------------------------------------------------------

    def _schedule(self, seconds: float, index: int, happen: Callable[[], None]) -> None:
        """Let something happen to a node after ``seconds``."""
        event = _Event(self.now + seconds, next(self.event_numbers), index, self.nodes[index].generation, happen)
        heappush(self.events, event)

    def _come(self, index: int) -> None:
        node = self.nodes[index]
        node.is_there = True
        node.since = self.now
        node.holds = node.machine.layers
        if self.scenario.lifetime:
            self._schedule(self.fate.expovariate(1 / self.scenario.lifetime), index, partial(self._go, index))
        self._perform(self.router.join(index, node.machine.layers, node.machine.seconds, self.now))

    def _stop(self, index: int) -> None:
        """Let a node answer nothing any more, which nobody is told of."""
        node = self.nodes[index]
        self._count_presence(node)
        node.is_there = False
        node.generation += 1

    def _go(self, index: int, for_good: bool = False) -> None:
        self._stop(index)
        self._schedule(self.scenario.detection, index, partial(self._notice, index))
        if for_good:
            return
        absence = 0.0
        if self.scenario.absence:
            absence = self.fate.expovariate(1 / self.scenario.absence)
        self._schedule(absence, index, partial(self._come, index))

    def _notice(self, index: int) -> None:
        """The router learns that a node has gone, unless it has come back."""
        if not self.nodes[index].is_there:
            self._perform(self.router.lose(index, self.now))

    def _count_presence(self, node: _SimulatedNode) -> None:
        """Count what a node could have run since it last began to hold the layers that it holds."""
        seconds = max(0.0, self.now - max(node.since, self.warm_up))
        self.capacity[node.holds] += seconds / node.machine.seconds
        node.since = self.now

    # --- What the router wants -------------------------------------------------------------------------------

    def _perform(self, actions: Iterable[Action]) -> None:
        """Do what the router says, and what it then says about the requests that follow those that end."""
        waiting = deque(actions)
        while waiting:
            action = waiting.popleft()
            if isinstance(action, Ended):
                self._count(action)
                if not self.scenario.rate:
                    waiting.extend(self._submit())
            else:
                self._begin_task(action)

    def _submit(self) -> list[Action]:
        """Submit the next request, if there is one."""
        if not self.to_submit:
            return []
        self.to_submit -= 1
        return self.router.submit(next(self.request_numbers), self.now)

    def _arrive(self) -> None:
        """Submit a request, whose caller doesn't wait for others, and decide when the next one comes."""
        self._perform(self._submit())
        self.next_arrival = self.now + self.arrivals.expovariate(self.scenario.rate)

    def _count(self, ended: Ended) -> None:
        if self.now >= self.warm_up:
            if ended.failed:
                self.failed += 1
            else:
                self.latencies.append(ended.seconds)
                self.missed += len(ended.missed)
        if self.on_ended is not None:
            self.on_ended(ended, self.now)

    def _begin_task(self, task: Task) -> None:
        index: Any = task.node
        node = self.nodes[index]
        if not node.is_there:
            return  # It has gone, and the router doesn't know yet.
        seconds = self.scenario.loading
        if isinstance(task, Run):
            self.steps += 1
            seconds = node.machine.seconds * len(task.layers) * self._noise()
        message = self.scenario.delay
        if isinstance(task, Run):
            message += self.scenario.transfer
        if self.scenario.latency:
            message += self.chance.expovariate(1 / self.scenario.latency)
        self._schedule(seconds + message, index, partial(self._answer, task))

    def _noise(self) -> float:
        """By what the time of a step is multiplied, 1 on average."""
        deviation = self.scenario.noise
        if not deviation:
            return 1.0
        return math.exp(self.chance.gauss(-(deviation**2) / 2, deviation))

    def _answer(self, task: Task) -> None:
        if isinstance(task, Load):
            index: Any = task.node
            node = self.nodes[index]
            self._count_presence(node)
            node.holds += (task.layer,)
        self._perform(self.router.answered(task, self.now))

    # --- The end ---------------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        for node in self.nodes:
            if node.is_there:
                self._count_presence(node)
        measured = self.now - self.warm_up
        capacity = {layers: layers_run / measured for layers, layers_run in self.capacity.items()}

        ended = len(self.latencies)
        latency = (math.nan, math.nan, math.nan)
        if ended:
            median, p95, p99 = np.percentile(self.latencies, [50, 95, 99])
            latency = (float(median), float(p95), float(p99))
        return Outcome(
            throughput=ended / measured,
            ideal=ideal_throughput(capacity, self.scenario.layers),
            latency=latency,
            missed=self.missed / max(1, ended),
            failed=self.failed / max(1, ended + self.failed),
            late=self.router.late,
            steps=self.steps,
        )
