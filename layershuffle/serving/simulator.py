"""The router on simulated time: thousands of nodes that differ in speed, go away and come back.

A discrete-event simulation: time jumps from one event to the next, so that an hour of a cluster takes seconds. It
drives the same ``Router`` as a real cluster does; only nodes and messages are simulated.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

from layershuffle.orders.order import seeded
from layershuffle.serving.actions import Action, Ended, Load, Run, Task
from layershuffle.serving.outcome import Measurements, Outcome
from layershuffle.serving.policy import Policy
from layershuffle.serving.router import Router
from layershuffle.serving.scenario import Machine, Scenario, sample_machines


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
        generation: counts up whenever it goes, so that the answers that it had begun then are known and left out.
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

        # The fate of the nodes has a source of chance of its own, so that it is the same for every policy. So have the
        # arrivals: how many steps run, and thus how many numbers they draw, depends on the policy.
        self.fate = seeded(seed, "nodes")
        self.chance = seeded(seed, "steps")
        self.arrivals = seeded(seed, "arrivals")
        self.nodes = [_SimulatedNode(machine) for machine in sample_machines(scenario, self.fate)]

        self.now = 0.0
        # A burst is over when it is answered, and all of it counts.
        self.warm_up = 0.0 if scenario.burst else scenario.duration / 4
        self.measurements = Measurements(self.warm_up)
        self.events: list[_Event] = []
        self.event_numbers = count()
        self.request_numbers = count(1)
        self.to_submit = scenario.burst or math.inf
        self.next_arrival = math.inf

    def run(self) -> Outcome:
        """Simulate from the beginning to the end."""
        scenario = self.scenario
        self._begin()
        requests = scenario.burst or math.inf
        while self.measurements.requests < requests:
            # Whatever comes first happens: an event of a node, a deadline of the router, or a request.
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

            # At the same time as a deadline, the event comes first: an answer that is just in time counts.
            event = heappop(self.events)
            self.now = event.time
            # A node that has gone since has taken its answer with it.
            if self.nodes[event.node].generation == event.generation:
                event.happen()
        return self._outcome()

    def _begin(self) -> None:
        """Let the nodes come, schedule the kills, and submit the first requests."""
        scenario = self.scenario
        # Each node is there with the probability that it has in the long run: if all were, the cluster would begin with
        # more nodes than it has later.
        share_there = 1.0
        if scenario.lifetime:
            share_there = scenario.lifetime / (scenario.lifetime + scenario.absence)
        for index in range(scenario.nodes):
            self._come(index)
            if self.fate.random() >= share_there:
                self._go(index)

        # The k-th of n kills comes after k / (n + 1) of the measured time, so that none is at its very end.
        measured = scenario.duration - self.warm_up
        for index in range(scenario.kills):
            time = self.warm_up + measured * (index + 1) / (scenario.kills + 1)
            self._schedule(time, index, partial(self._go, index, for_good=True))
        for index in range(scenario.nodes - scenario.stopped, scenario.nodes):
            self._schedule(self.warm_up, index, partial(self._stop, index))

        if scenario.rate:
            self._arrive()
            return
        in_flight = max(1, round(scenario.window * scenario.nodes))
        # When one of these requests ends, the next one is submitted, so that as many stay in flight. Those of a burst
        # are all that there are.
        for _ in range(scenario.burst or in_flight):
            self._perform(self._submit())

    # --- Nodes -----------------------------------------------------------------------------------------------

    def _schedule(self, seconds: float, index: int, happen: Callable[[], None]) -> None:
        """Let something happen to a node after ``seconds``."""
        event = _Event(self.now + seconds, next(self.event_numbers), index, self.nodes[index].generation, happen)
        heappush(self.events, event)

    def _come(self, index: int) -> None:
        """A node comes, or comes back, with the layers that it has from the beginning."""
        node = self.nodes[index]
        node.is_there = True
        node.since = self.now
        node.holds = node.machine.layers
        if self.scenario.lifetime:
            lifetime = self.fate.expovariate(1 / self.scenario.lifetime)
            self._schedule(lifetime, index, partial(self._go, index))
        self._perform(self.router.join(index, node.machine.layers, node.machine.seconds, self.now))

    def _stop(self, index: int) -> None:
        """Let a node answer nothing any more, which nobody is told of."""
        node = self.nodes[index]
        self._count_presence(node)
        node.is_there = False
        node.generation += 1

    def _go(self, index: int, for_good: bool = False) -> None:
        """A node goes, which is noticed after a while, and comes back later unless it goes for good."""
        self._stop(index)
        # These belong to the generation that begins now, so that they happen although the node has gone.
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
        self.measurements.count_presence(node.machine, node.holds, node.since, self.now)
        node.since = self.now

    # --- What the router wants -------------------------------------------------------------------------------

    def _perform(self, actions: Iterable[Action]) -> None:
        """Do what the router says, and what it then says about the requests that follow those that end."""
        waiting = deque(actions)
        while waiting:
            action = waiting.popleft()
            if isinstance(action, Ended):
                self._end_request(action)
                # Where requests come at a rate, nobody waits for one to end before sending the next.
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

    def _end_request(self, ended: Ended) -> None:
        """Count a request that has ended, and tell whoever wants to know."""
        self.measurements.count_request(ended, self.now)
        if self.on_ended is not None:
            self.on_ended(ended, self.now)

    def _begin_task(self, task: Task) -> None:
        """Let a node begin what it is told, and schedule its answer."""
        index: Any = task.node
        node = self.nodes[index]
        if not node.is_there:
            return  # It has gone, and the router doesn't know yet.

        # What it computes, or how long it loads.
        seconds = self.scenario.loading
        if isinstance(task, Run):
            self.measurements.steps += 1
            seconds = node.machine.seconds * len(task.layers) * self._noise()

        # What its message and its answer take; a state travels with runs alone.
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
        # The mean of a log-normal variable is exp(mu + sigma^2 / 2), which is 1 with this mu.
        return math.exp(self.chance.gauss(-(deviation**2) / 2, deviation))

    def _answer(self, task: Task) -> None:
        """A node has done what it was told."""
        if isinstance(task, Load):
            # From now on it can run one layer more, which changes what it counts as in the bound.
            index: Any = task.node
            node = self.nodes[index]
            self._count_presence(node)
            node.holds += (task.layer,)
        self._perform(self.router.answered(task, self.now))

    # --- The end ---------------------------------------------------------------------------------------------

    def _outcome(self) -> Outcome:
        """What the simulation has shown, once the nodes that are there are counted until the end."""
        for node in self.nodes:
            if node.is_there:
                self._count_presence(node)
        return self.measurements.outcome(self.now, self.scenario.layers, self.router.late)
