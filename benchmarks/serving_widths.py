"""The widths of ``benchmarks.serving``: latency and throughput against the number of nodes that a request may be at.

Three networks in the simulator; and real processes, whose nodes sleep in place of sending and computing.
"""

import asyncio
import json
import os
import signal
import time
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

from benchmarks.serving_cluster import STEADY, SleepingCluster
from layershuffle.files import write_whole
from layershuffle.hardware import device_name
from layershuffle.orders.order import seeded
from layershuffle.results.tables import markdown
from layershuffle.serving.actions import Ended
from layershuffle.serving.policy import Policy
from layershuffle.serving.ray_connection import connect
from layershuffle.serving.result import Result
from layershuffle.serving.scenario import Scenario
from layershuffle.serving.simulator import simulate

SEEDS = range(3)
WIDTHS = (1, 2, 3, 4, 6, 12)
LOAD = 0.8
"""The rate of requests, as a share of what width 1 does at most."""
IN_TIME = (1.0, 0.75, 0.5)
"""The times by which requests are answered, as shares of the median latency at that load without such a time."""

NEAR = Scenario(nodes=24, seconds=0.01, spread=0.5, noise=0.2, latency=0.0, lifetime=0.0, detection=0.5, loading=1.0)
NETWORKS = {
    "volunteers": Scenario(nodes=24, duration=7200),
    "50 ms": replace(NEAR, delay=0.05, duration=60),
    "LAN, 2 ms, 1 Gbit/s": replace(NEAR, delay=0.002, bandwidth=1000, duration=30),
    "WAN, 80 ms, 20 Mbit/s": replace(NEAR, delay=0.08, bandwidth=20, duration=600),
    "WAN, int8": replace(NEAR, delay=0.08, bandwidth=20, kilobytes=152, duration=300),
}
"""The volunteers of ``layershuffle simulate``, and nodes that take 10 ms for a layer of a ViT-B image."""
ANY = Policy(step_deadline=120.0, request_deadline=3600.0)
"""The policy in all networks, but for its width."""


@dataclass(frozen=True)
class Point:
    """What happened at one width and load.

    Attributes:
        network: the network, a key of NETWORKS.
        load: "alone" with one request at a time, "80%" at that load, "full" with two requests in flight per node.
        width: at how many nodes a request may be.
        answer_by: the time by which requests were answered, in seconds, or None.
        throughput: requests that ended in a second.
        latency: the median, the 95th and the 99th percentile, in seconds.
        longest: the longest latency, in seconds.
        missed: the mean number of layers that a request missed.
        failed: the share of requests that failed.
    """

    network: str
    load: str
    width: int
    answer_by: float | None
    throughput: float
    latency: tuple[float, float, float]
    longest: float
    missed: float
    failed: float

    def row(self, reference: "Point") -> list[str]:
        """A row under HEADER; shares are those of ``reference``."""
        p50, p95, p99 = (f"{seconds:.3g}" for seconds in self.latency)
        return [
            self.network,
            self.load,
            str(self.width),
            "" if self.answer_by is None else f"{self.answer_by:.3g}",
            p50,
            f"{self.latency[0] / reference.latency[0]:.2f}",
            p95,
            p99,
            f"{self.longest:.3g}",
            f"{self.throughput:.3g}",
            f"{self.throughput / reference.throughput:.3f}",
            f"{self.missed:.2f}",
            f"{100 * self.failed:.2f}",
        ]


HEADER = [
    "network",
    "load",
    "width",
    "answer by, s",
    "p50, s",
    "of width 1",
    "p95, s",
    "p99, s",
    "longest, s",
    "requests/s",
    "of width 1",
    "layers missed",
    "% failed",
]


def simulate_widths(output: Path) -> None:
    """Simulate each width in each network; writes the outcomes, and prints a table of each network."""
    everything = []
    for network, scenario in NETWORKS.items():
        alone = replace(scenario, window=1 / scenario.nodes)
        full = replace(scenario, window=2.0)
        at_alone = [_point(network, "alone", alone, replace(ANY, width=width)) for width in WIDTHS]
        at_full = [_point(network, "full", full, replace(ANY, width=width)) for width in WIDTHS]
        loaded = replace(scenario, rate=LOAD * at_full[0].throughput)
        at_load = [_point(network, "80%", loaded, replace(ANY, width=width)) for width in WIDTHS]

        # Nodes are killed, and requests answered in time.
        killed = loaded if loaded.lifetime else replace(loaded, kills=loaded.nodes // 5)
        (four,) = (point for point in at_load if point.width == 4)
        in_time = []
        for share in IN_TIME:
            policy = replace(ANY, width=4, answer_by=share * four.latency[0])
            in_time.append(_point(network, "80%, kills", killed, policy))

        rows = []
        for points in (at_alone, at_load, at_full):
            rows += [point.row(points[0]) for point in points]
        rows += [point.row(at_load[0]) for point in in_time]
        print(markdown(HEADER, rows), flush=True)
        everything += [*at_alone, *at_load, *at_full, *in_time]
    write_whole(output, json.dumps([vars(point) for point in everything], indent=1) + "\n")


def _point(network: str, load: str, scenario: Scenario, policy: Policy) -> Point:
    """The means over the seeds, and the longest latency of all of them; fails if a request ends twice."""
    outcomes = []
    longest = 0.0
    for seed in SEEDS:
        ended: Counter[int] = Counter()
        seconds = [0.0]

        def on_ended(request: Ended, _: float, ended: Counter[int] = ended, seconds: list[float] = seconds) -> None:
            ended[request.request] += 1
            seconds.append(request.seconds)

        outcomes.append(simulate(scenario, policy, seed, on_ended))
        assert max(ended.values()) == 1, "a request ended twice"
        longest = max(longest, *seconds)

    p50, p95, p99 = (fmean(percentiles) for percentiles in zip(*(outcome.latency for outcome in outcomes)))
    return Point(
        network,
        load,
        policy.width,
        policy.answer_by,
        fmean(outcome.throughput for outcome in outcomes),
        (p50, p95, p99),
        longest,
        fmean(outcome.missed for outcome in outcomes),
        fmean(outcome.failed for outcome in outcomes),
    )


DELAY = 0.05
"""The seconds that each of the twelve processes sleeps for a step."""
ALONE = 20
"""How many requests are sent one after the other."""
SECONDS = 15.0
"""For how long requests come at a rate."""


class Requests:
    """Requests to a cluster of nodes that sleep.

    Args:
        cluster: the cluster.

    Attributes:
        seconds: how long each of them took.
        missed: how many layers each of them missed.
        ended_at: when each of them was answered.
    """

    def __init__(self, cluster: SleepingCluster) -> None:
        self.cluster = cluster
        self.seconds: list[float] = []
        self.ended_at: list[float] = []
        self.missed: list[int] = []

    async def send(self) -> None:
        """Send a request; fails unless each layer counted once, or is said to be missing and didn't count."""
        begun = time.monotonic()  # which is the event loop's time
        result = await self.cluster.submit(torch.zeros(1, 1, 1, 1), begun)
        self.ended_at.append(time.monotonic())
        self.seconds.append(self.ended_at[-1] - begun)
        self.missed.append(len(result.missed))
        assert _layers_that_ran(result) == sorted(result.order.layers), "a layer counted twice, or was lost"

    async def send_at(self, rate: float) -> float:
        """Send requests at random times, so many in a second; returns how many were answered in a second.

        The first quarter of the time warms up, as in the simulator.
        """
        arrivals = seeded("arrivals")
        begun = time.monotonic()
        sent = []
        due = begun
        while due < begun + SECONDS:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            sent.append(asyncio.create_task(self.send()))
            due += arrivals.expovariate(rate)
        await asyncio.gather(*sent)
        in_time = [ended for ended in self.ended_at if begun + SECONDS / 4 <= ended < begun + SECONDS]
        return len(in_time) / (SECONDS * 3 / 4)

    def row(self) -> list[str]:
        """The median, the 95th and the 99th percentile, the longest, and the mean number of layers missed."""
        percentiles = [*np.percentile(self.seconds, [50, 95, 99]), max(self.seconds)]
        return [*(f"{seconds:.3f}" for seconds in percentiles), f"{fmean(self.missed):.2f}"]


def _layers_that_ran(result: Result) -> list[int]:
    """The layers that the state says to have run once; a layer that ran twice is there twice."""
    layers: list[int] = []
    for layer, times in enumerate(result.logits.tolist()):
        layers += [layer] * round(times)
    return layers


async def measure_widths() -> None:
    """Measure each width on twelve processes, which sleep for 50 ms, alone and at 80% load; prints a table."""
    print(f"{device_name(torch.device('cpu'))}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the beginning")
    rows = []
    connect(None, STEADY.nodes)
    async with SleepingCluster() as cluster:
        scenario = replace(STEADY, seconds=DELAY)
        rate = 0.0
        for width in WIDTHS:
            await cluster.begin(scenario, Policy(width=width))
            # The first requests take longer, because Ray connects the processes.
            await Requests(cluster).send()
            alone = Requests(cluster)
            for _ in range(ALONE):
                await alone.send()
            if width == 1:
                rate = LOAD * (await cluster.measure(scenario))["requests/s"]
            loaded = Requests(cluster)
            throughput = await loaded.send_at(rate)
            rows.append([str(width), "", "alone", "", *alone.row()])
            rows.append([str(width), "", "80%", f"{throughput:.2f}", *loaded.row()])

        # Every request is answered in time, though a node is killed and another one is stopped.
        for load, answer_by in product((0.5, LOAD), (0.3, 0.2)):
            await cluster.begin(scenario, Policy(width=4, answer_by=answer_by, step_deadline=0.5))
            loaded = Requests(cluster)
            stopped: list[int] = []
            for number, signal_number in enumerate((signal.SIGKILL, signal.SIGSTOP), 1):
                process = cluster.process(f"node{number}")
                asyncio.get_running_loop().call_later(number * SECONDS / 4, os.kill, process, signal_number)
                if signal_number == signal.SIGSTOP:
                    stopped.append(process)
            throughput = await loaded.send_at(rate * load / LOAD)
            for process in stopped:
                os.kill(process, signal.SIGCONT)
            rows.append(["4", f"{answer_by}", f"{load:.0%}, a kill and a stop", f"{throughput:.2f}", *loaded.row()])
    header = ["width", "answer by, s", "load", "requests/s", "p50, s", "p95, s", "p99, s", "longest, s", "missed"]
    print(markdown(header, rows))
