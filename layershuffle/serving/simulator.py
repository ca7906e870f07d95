"""The router on simulated time: thousands of nodes that differ in speed, go away and come back."""

import math
import random
from array import array
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import lil_array

from layershuffle.errors import UserError
from layershuffle.orders.order import seeded
from layershuffle.serving.router import Action, Ended, Load, Policy, Router, Run


@dataclass(frozen=True)
class Scenario:
    """The nodes, and the load on them. Times are in seconds.

    Attributes:
        nodes: how many there are, living or away.
        layers: the layers of the model.
        layers_per_node: how many successive layers each node holds. Each node in turn begins with the layer whose
            holders are the slowest, taken together, as the servers of Petals do (arXiv 2209.01188).
        seconds: what a request takes in a layer on the median node.
        spread: the standard deviation of the logarithm of the nodes' speeds.
        straggler: how many times as long as that every tenth node takes, beginning with the first.
        noise: the standard deviation of the logarithm of the time of a step on the same node.
        latency: the mean time of a message to a node and its answer; exponentially distributed.
        lifetime: the mean time for which a node stays, exponentially distributed; 0 if it stays for ever.
        absence: the mean time until it comes back, with the same layers; exponentially distributed.
        detection: the time until it is noticed that a node has gone.
        loading: the time in which a node loads another layer.
        window: how many requests are in flight, for each node; when one ends, the next one is submitted.
        duration: the time that is simulated. The first quarter warms up, and isn't measured.
        kills: how many nodes go for good, the first ones, evenly spread over the time that is measured. It needs a
            lifetime of 0.
        burst: if above 0, this many requests come at the beginning, and no others. Then all is measured until the last
            one ends.
    """

    nodes: int = 100
    layers: int = 12
    layers_per_node: int = 1
    seconds: float = 5.0
    spread: float = 0.5
    straggler: float = 1.0
    noise: float = 0.2
    latency: float = 0.1
    lifetime: float = 3600.0
    absence: float = 600.0
    detection: float = 5.0
    loading: float = 30.0
    window: float = 1.0
    duration: float = 3600.0
    kills: int = 0
    burst: int = 0

    def __post_init__(self) -> None:
        positive = ("nodes", "layers", "layers_per_node", "seconds", "window", "duration")
        for name, value in vars(self).items():
            if not value >= 0 or (name in positive and not value > 0):
                raise UserError(f"{name} can't be {value}: give a number above 0")
        if self.kills and (self.lifetime or self.kills > self.nodes):
            raise UserError(f"{self.kills} kills need a lifetime of 0, and as many nodes")
        if self.layers_per_node > self.layers or self.nodes * self.layers_per_node < self.layers:
            raise UserError(
                f"{self.nodes} nodes that hold {self.layers_per_node} each of {self.layers} layers can't run a model: "
                "each layer needs a node, and no node holds a layer twice"
            )


@dataclass(frozen=True)
class Outcome:
    """What a simulation found.

    Attributes:
        throughput: requests that ended in a second, those that failed left out. A burst takes its number over this.
        ideal: the bound on it that the nodes' speeds, layers and presence set if no layer is missed, see
            ``ideal_throughput``.
        latency: the median and the 95th percentile of the seconds from submission to end; NaN if none ended.
        missed: the mean number of layers that a request did without.
        failed: the share of requests that reached their deadline.
        late: how many answers came too late to count.
        steps: how many steps ran, those of the first quarter included.
    """

    throughput: float
    ideal: float
    latency: tuple[float, float]
    missed: float
    failed: float
    late: int
    steps: int

    @property
    def share(self) -> float:
        """The throughput as a share of the ideal; NaN if some layer never had a node, so that the ideal is 0."""
        return self.throughput / self.ideal if self.ideal else math.nan


class Node(NamedTuple):
    """The layers that a node holds when it comes, and the seconds that it takes for one."""

    layers: tuple[int, ...]
    seconds: float


def draw_nodes(scenario: Scenario, fate: random.Random) -> list[Node]:
    """The nodes of a scenario, as ``Scenario.layers_per_node`` describes them."""
    speeds = [0.0] * scenario.layers
    nodes = []
    for number in range(scenario.nodes):
        seconds = scenario.seconds * math.exp(scenario.spread * fate.gauss(0, 1))
        seconds *= scenario.straggler if number % 10 == 0 else 1
        slowest = speeds.index(min(speeds))
        held = tuple((slowest + i) % scenario.layers for i in range(scenario.layers_per_node))
        for layer in held:
            speeds[layer] += 1 / seconds
        nodes.append(Node(held, seconds))
    return nodes


class _Node:
    __slots__ = ("generation", "holds", "layers", "living", "seconds", "since")

    def __init__(self, layers: tuple[int, ...], seconds: float) -> None:
        self.layers, self.seconds = layers, seconds
        self.generation = 0  # counts up whenever the node goes
        self.living, self.since, self.holds = False, 0.0, layers


def simulate(
    scenario: Scenario, policy: Policy, seed: int = 0, on_ended: Callable[[Ended, float], Any] | None = None
) -> Outcome:
    """Simulate ``scenario`` under ``policy``.

    One request per ``window`` and node is in flight: when one ends, the next is submitted, unless it was a burst.

    The speeds, lifetimes and absences of the nodes are a function of the seed and the scenario alone, the same for
    every policy. ``on_ended`` is called with each request that ended and the time.
    """
    fate, chance = seeded(seed, "nodes"), seeded(seed, "steps")
    nodes = [_Node(*node) for node in draw_nodes(scenario, fate)]
    router = Router(scenario.layers, policy, seed)
    events: list[tuple[float, int, int, int, Any]] = []  # time, number, node, its generation, task
    numbers, submitted, steps = count(), count(1), 0
    warm_up, now = 0.0 if scenario.burst else scenario.duration / 4, 0.0
    seconds, missed, failed = array("d"), 0, 0
    to_come = scenario.burst or math.inf  # how many requests are yet to be submitted
    capacity: defaultdict[tuple[int, ...], float] = defaultdict(float)

    def schedule(after: float, at: int, task: Any) -> None:
        heappush(events, (now + after, next(numbers), at, nodes[at].generation, task))

    def begin(at: int) -> list[Action]:
        node = nodes[at]
        node.living, node.since, node.holds = True, now, node.layers
        if scenario.lifetime:
            schedule(fate.expovariate(1 / scenario.lifetime), at, "goes")
        return router.join(at, node.layers, node.seconds, now)

    def count_presence(node: _Node) -> None:
        """What it could have run since it last began to hold the layers that it holds."""
        capacity[node.holds] += max(0.0, now - max(node.since, warm_up)) / node.seconds
        node.since = now

    def end(at: int, for_good: bool = False) -> None:
        node = nodes[at]
        count_presence(node)
        node.living = False
        node.generation += 1
        schedule(scenario.detection, at, "is noticed")
        if not for_good:
            schedule(fate.expovariate(1 / scenario.absence) if scenario.absence else 0.0, at, "comes")

    def submit() -> list[Action]:
        nonlocal to_come
        to_come -= 1
        return router.submit(next(submitted), now) if to_come >= 0 else []

    def perform(actions: list[Action]) -> None:
        nonlocal missed, failed, steps
        while actions:
            following: list[Action] = []
            for action in actions:
                if isinstance(action, Ended):
                    if now >= warm_up:
                        failed += action.failed
                        if not action.failed:
                            seconds.append(action.seconds)
                            missed += len(action.missed)
                    if on_ended is not None:
                        on_ended(action, now)
                    following += submit()
                    continue
                at: Any = action.node
                if nodes[at].living:  # else it has gone, and nobody knows yet
                    taken = scenario.loading
                    if isinstance(action, Run):
                        steps += 1
                        noise = scenario.noise and math.exp(chance.gauss(-(scenario.noise**2) / 2, scenario.noise))
                        taken = nodes[at].seconds * len(action.layers) * (noise or 1.0)
                    wait = chance.expovariate(1 / scenario.latency) if scenario.latency else 0.0
                    schedule(taken + wait, at, action)
            actions = following

    present = scenario.lifetime / (scenario.lifetime + scenario.absence) if scenario.lifetime else 1.0
    for at in range(scenario.nodes):
        perform(begin(at))
        if fate.random() >= present:
            end(at)
    for at in range(scenario.kills):
        schedule(warm_up + (scenario.duration - warm_up) * (at + 1) / (scenario.kills + 1), at, "is killed")
    for _ in range(scenario.burst or max(1, round(scenario.window * scenario.nodes))):
        perform(submit())
    while len(seconds) + failed < (scenario.burst or math.inf):
        time = events[0][0] if events else math.inf
        due = router.next_time()
        if min(time, due) >= scenario.duration:
            now = scenario.duration
            break
        if due < time:
            now = due
            perform(router.tick(now))
            continue
        now, _, at, generation, task = heappop(events)
        if nodes[at].generation != generation:
            continue  # It has gone since, and has taken its answer with it.
        if task in ("goes", "is killed"):
            end(at, task == "is killed")
        elif task == "comes":
            perform(begin(at))
        elif task == "is noticed":
            if not nodes[at].living:
                perform(router.lose(at, now))
        else:
            if isinstance(task, Load):
                count_presence(nodes[at])
                nodes[at].holds += (task.layer,)
            perform(router.answered(task, now))
    for node in nodes:
        if node.living:
            count_presence(node)
    measured = now - warm_up
    ideal = ideal_throughput({held: ran / measured for held, ran in capacity.items()}, scenario.layers)
    ended = len(seconds)
    p50, p95 = np.percentile(seconds, [50, 95]) if ended else (math.nan, math.nan)
    share_failed = failed / max(1, ended + failed)
    return Outcome(
        ended / measured,
        ideal,
        (float(p50), float(p95)),
        missed / max(1, ended),
        share_failed,
        router.late,
        steps,
    )


def ideal_throughput(capacity: Mapping[tuple[int, ...], float], layers: int) -> float:
    """The most requests a second that nodes can run through all layers, by linear programming.

    It takes no queue, no message and no loss into account.

    Args:
        capacity: for each choice of layers that nodes hold, how many layers these nodes together run in a second.
        layers: the number of layers.
    """
    shares = [(group, layer) for group, held in enumerate(capacity) for layer in held]
    # The last variable is the throughput, and each other one how often a group runs one of its layers in a second.
    limits = lil_array((len(capacity) + layers, len(shares) + 1))
    for column, (group, layer) in enumerate(shares):
        limits[group, column] = 1
        limits[len(capacity) + layer, column] = -1
    limits[len(capacity) :, len(shares)] = 1
    most = [*capacity.values()] + [0.0] * layers
    return float(-linprog([0.0] * len(shares) + [-1.0], limits.tocsr(), most, method="highs").fun)
