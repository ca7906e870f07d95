"""The comparison of ``benchmarks.serving``: the same scenarios on a Ray cluster of processes and in the simulator.

The nodes of the cluster sleep for as long as the simulator's nodes compute. So twelve of them fit on a few cores, and
what remains of a difference comes from messages, scheduling and the real clock.
"""

import asyncio
import json
import math
import os
import random
import signal
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import ray
import torch

from layershuffle.choices import Wire
from layershuffle.files import write_whole
from layershuffle.orders.order import Order, seeded
from layershuffle.results.tables import markdown
from layershuffle.serving.cluster import Cluster
from layershuffle.serving.policy import Policy, Routing
from layershuffle.serving.ray_connection import connect
from layershuffle.serving.router import Router
from layershuffle.serving.scenario import Scenario, sample_machines
from layershuffle.serving.simulator import simulate
from layershuffle.serving.wire import Packed, answer_of, unpack

STEADY = Scenario(nodes=12, seconds=0.05, spread=0.0, noise=0.0, lifetime=0.0, absence=0.0, loading=0.0, duration=12.0)
SCENARIOS = {
    "equal nodes": STEADY,
    "uneven nodes": replace(STEADY, spread=0.5),
    "noisy service": replace(STEADY, noise=0.5),
    "burst of 12": replace(STEADY, burst=12),
    "3 kills, reassign": replace(STEADY, kills=3),
    "3 kills, skip": replace(STEADY, kills=3),
}
ROUTINGS: tuple[Routing, ...] = ("any", "sequential")
BURSTS = 5
"""How often a burst is repeated on the cluster, because a single one takes less than a second."""
SIMULATIONS = 20
"""How many seeds the simulator runs, or how many times as long."""
HEADER = ["scenario", "routing", "cluster, requests/s", "simulator", "error, %", "layers missed", "simulator"]

Measures = dict[str, float]
"""Requests per second ("requests/s") and the mean number of layers that a request missed ("missed")."""


class SleepingNode:
    """A node that holds nothing and sleeps in place of computing, for as long as the simulator's nodes compute.

    It has the methods of ``layershuffle.serving.worker.Worker``.
    """

    def __init__(self) -> None:
        self.layers: set[int] = set()

    def set_up(self, layers: tuple[int, ...], seconds: float, noise: float) -> None:
        """Hold these layers, and take so many seconds for one; ``noise`` is that of ``Scenario``."""
        self.layers = set(layers)
        self.seconds = seconds
        self.noise = noise

    def hold(self, index: int, part: None, step: None) -> None:
        """Hold another layer."""
        self.layers.add(index)

    def weights(self) -> dict[int, str]:
        """A fingerprint of each layer that it holds."""
        return dict.fromkeys(self.layers, "")

    def process(self) -> int:
        """The id of the process."""
        return os.getpid()

    def run(self, packed: Packed, context: None, indices: tuple[int, ...], position: int, wire: Wire) -> Packed:
        """Sleep for each layer, and count in the first numbers of the tokens how often each layer ran."""
        read = unpack(packed)
        output = read.copy()
        for index in indices:
            output[0, 0, index] += 1
            # The logarithm's mean is below 0, so that noise leaves the mean time as it is.
            time.sleep(self.seconds * math.exp(random.gauss(-(self.noise**2) / 2, self.noise)))
        return answer_of(read, output, wire)

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        """Never returns: the call fails when the process ends."""
        threading.Event().wait()


class SleepingCluster(Cluster):
    """A cluster of nodes that sleep. Its processes are started once, and take part in one scenario after the other.

    Attributes:
        killed: when each node was killed whose loss was not noticed yet, by its name.
        detection: the seconds that it took to notice each kill.
    """

    def __init__(self) -> None:
        # These are all that a cluster asks of its model; embedding and classifying are replaced below.
        model: Any = SimpleNamespace(
            order=Order(range(STEADY.layers)), image_shape=(1, 1, 1), parameters=lambda: iter([torch.zeros(1)])
        )
        super().__init__(model, STEADY.nodes)
        self.killed: dict[str, float] = {}
        self.detection: list[float] = []

    async def _start_nodes(self) -> None:
        # All nodes hold the same nothing, with the fingerprint that ``SleepingNode.weights`` returns.
        self._parts: Any = [None] * STEADY.layers
        self._fingerprints = [""] * STEADY.layers
        self._loop = asyncio.get_running_loop()
        self._count_metrics: Any = self._log.listener
        self._log.listener = self._note
        await self.begin(STEADY, Policy())

    def _embed(self, images: torch.Tensor) -> tuple[np.ndarray, None]:
        # Messages are as long as those of the config mini_glyphs: 17 tokens of width 48.
        return np.zeros((1, 17, 48), np.float32), None

    def _classify(self, flight: Any) -> torch.Tensor:
        """How often each layer ran, where a model would have logits."""
        return torch.tensor(flight.tokens[0, 0, : STEADY.layers])

    def _note(self, event: str, **more: Any) -> None:
        """Note when the loss of a node is noticed that was killed. The log tells of each event when it happens."""
        if event == "lost" and more["node"] in self.killed:
            self.detection.append(self._loop.time() - self.killed.pop(more["node"]))
        self._count_metrics(event, **more)

    async def begin(self, scenario: Scenario, policy: Policy) -> None:
        """Let all nodes take part in a scenario; those that were killed are started again."""
        self.policy = policy
        self.router = self.dispatcher.router = Router(scenario.layers, policy)

        # These are the machines that the simulator samples, too.
        machines = {}
        for number, machine in enumerate(sample_machines(scenario, seeded(0, "nodes"))):
            machines[f"node{number}"] = machine

        # A process is kept from one scenario to the next, because starting one takes a second.
        remote: Any = ray.remote  # Its types lack concurrency_groups.
        start_worker = remote(max_restarts=0, num_cpus=1, concurrency_groups={"watch": 1})(SleepingNode).remote
        dispatcher = self.dispatcher
        workers = {}
        settings = []
        for name, machine in machines.items():
            if name in dispatcher.workers and name not in dispatcher.gone:
                workers[name] = dispatcher.workers[name]
            else:
                workers[name] = start_worker()
            settings.append(workers[name].set_up.remote(machine.layers, machine.seconds, scenario.noise))
        await asyncio.gather(*settings)
        for name, machine in machines.items():
            await self.join(name, workers[name], machine.layers)

    def kill(self, name: str) -> None:
        """Kill the process of a node."""
        self.killed[name] = self._loop.time()
        os.kill(self.process(name), signal.SIGKILL)

    def process(self, name: str) -> int:
        """The id of the process of a node that lives."""
        return self.dispatcher.processes[name]

    async def measure(self, scenario: Scenario) -> Measures:
        """What ``simulate`` measures of a scenario, on the real clock."""
        start = self._loop.time()
        # The first quarter warms up, as in the simulator; of a burst everything counts.
        warm_up = 0.0 if scenario.burst else scenario.duration / 4
        end_times: list[float] = []
        missed: list[int] = []

        async def client() -> None:
            while self._loop.time() - start < scenario.duration:
                result = await self.submit(torch.zeros(1, 1, 1, 1))
                now = self._loop.time() - start
                if warm_up <= now < scenario.duration:
                    end_times.append(now)
                    missed.append(len(result.missed))
                if scenario.burst:
                    return

        # The kills are evenly spread over the time that is measured.
        measured_time = scenario.duration - warm_up
        for number in range(scenario.kills):
            delay = warm_up + measured_time * (number + 1) / (scenario.kills + 1)
            self._loop.call_later(delay, self.kill, f"node{number}")
        clients = scenario.burst or scenario.nodes
        await asyncio.gather(*(client() for _ in range(clients)))
        if scenario.burst:
            measured_time = end_times[-1]
        return {"requests/s": len(end_times) / measured_time, "missed": fmean(missed)}


@dataclass
class Comparison:
    """A scenario with a way of routing, on the cluster and in the simulator.

    Attributes:
        scenario: its name, a key of SCENARIOS.
        routing: how steps are routed.
        cluster: what was measured of each repetition on the cluster.
        simulator: what each simulation found.
    """

    scenario: str
    routing: Routing
    cluster: list[Measures]
    simulator: list[Measures]

    def row(self) -> list[str]:
        """A row under HEADER."""
        real = _mean(self.cluster, "requests/s")
        simulated = _mean(self.simulator, "requests/s")
        return [
            self.scenario,
            self.routing,
            f"{real:.2f}",
            f"{simulated:.2f}",
            f"{100 * (simulated / real - 1):+.1f}",
            f"{_mean(self.cluster, 'missed'):.2f}",
            f"{_mean(self.simulator, 'missed'):.2f}",
        ]


def _mean(repetitions: list[Measures], measure: str) -> float:
    return fmean(measures[measure] for measures in repetitions)


def _policy(scenario_name: str, routing: Routing) -> Policy:
    """The policy of a scenario, which is the same on the cluster and in the simulator."""
    return Policy(routing, "skip" if "skip" in scenario_name else "reassign", patience=0.2)


async def compare_with_simulator(output: Path) -> None:
    """Run each scenario on the cluster and in the simulator; writes the measures, and prints a table."""
    comparisons = []
    connect(None, STEADY.nodes)
    async with SleepingCluster() as cluster:
        message = await _message_seconds(cluster)
        for name, scenario in SCENARIOS.items():
            for routing in ROUTINGS:
                repetitions = []
                for _ in range(BURSTS if scenario.burst else 1):
                    await cluster.begin(scenario, _policy(name, routing))
                    repetitions.append(await cluster.measure(scenario))
                comparisons.append(Comparison(name, routing, repetitions, []))
        detection = fmean(cluster.detection)

    # The simulator gets what only the cluster can tell: how long a message takes, and how long a loss goes unnoticed.
    for comparison in comparisons:
        scenario = replace(SCENARIOS[comparison.scenario], latency=message, detection=detection)
        comparison.simulator = _simulate(scenario, _policy(comparison.scenario, comparison.routing))

    print(markdown(HEADER, [comparison.row() for comparison in comparisons]))
    print(
        f"a message and its answer took {1000 * message:.1f} ms, and it took {1000 * detection:.0f} ms to notice a kill"
    )
    content = {"message": message, "detection": detection, "found": [vars(comparison) for comparison in comparisons]}
    write_whole(output, json.dumps(content) + "\n")


async def _message_seconds(cluster: SleepingCluster) -> float:
    """The seconds of a message to a node and its answer: what a lone request takes beside the nodes' sleep."""
    alone = replace(STEADY, burst=1)
    # The first request takes longer, because Ray connects the processes.
    await cluster.measure(alone)
    request_seconds = []
    for _ in range(BURSTS):
        measures = await cluster.measure(alone)
        request_seconds.append(1 / measures["requests/s"])
    return fmean(request_seconds) / STEADY.layers - STEADY.seconds


def _simulate(scenario: Scenario, policy: Policy) -> list[Measures]:
    """What the simulator finds of a scenario: many short simulations, or a single long one."""
    if scenario.kills or scenario.burst:
        outcomes = [simulate(scenario, policy, seed) for seed in range(SIMULATIONS)]
    else:
        # The seed decides the nodes' speeds, and the cluster's are those of the first seed.
        outcomes = [simulate(replace(scenario, duration=SIMULATIONS * scenario.duration), policy)]
    return [{"requests/s": outcome.throughput, "missed": outcome.missed} for outcome in outcomes]
