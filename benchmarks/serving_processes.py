"""The processes of ``benchmarks.serving``: width and ``answer_by`` on twelve real nodes, whose steps take 50 ms.

The nodes sleep for these 50 ms, or the network takes them: see ``benchmarks.delayed_link``.
"""

import asyncio
import gc
import json
import multiprocessing
import os
import random
import signal
import time
from dataclasses import asdict, dataclass, field, replace
from multiprocessing.pool import AsyncResult
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from benchmarks.serving_cluster import STEADY, SleepingCluster
from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.hardware import device_name
from layershuffle.orders.order import seeded
from layershuffle.results.tables import markdown
from layershuffle.serving.policy import Policy
from layershuffle.serving.ray_connection import connect
from layershuffle.serving.result import Result
from layershuffle.serving.scenario import Scenario

WIDTHS = (1, 2, 3, 4, 6, 12)
ROUNDS = 4
"""How often each width takes its turn with requests that come one after the other, in a new sequence each time."""
ALONE = 6
"""How many requests it answers in its turn, after one that isn't counted, for which Ray connects the processes."""
LOAD = 0.8
"""The rate of requests, as a share of what width 1 does at most."""
SECONDS = 15.0
"""For how long requests come at a rate."""
ANSWER_BY = (0.3, 0.2)
"""The times by which requests of width 4 are answered, in seconds, while a node is killed and another one stopped."""
TICK = 0.005
"""How often it is measured how late the coordinator and the machine are, in seconds."""

Late = tuple[float, float]
"""How late something was: the 99th percentile and the most, in seconds."""


@dataclass
class Measured:
    """What was measured at one width and load.

    Attributes:
        load: "alone" with one request at a time, "80%" at that load, and so on.
        width: at how many nodes a request may be.
        answer_by: the time by which requests were answered, in seconds, or None.
        seconds: how long each request took.
        missed: how many layers each request missed.
        throughput: requests that were answered in a second.
        errors: how many requests were not answered, but for an error.
        coordinator_late: how late the coordinator's event loop woke up: the 99th percentile and the most, in seconds.
        machine_late: how late a process woke up that does nothing else.
        collections: how long each of Python's garbage collections took, in seconds.
    """

    load: str
    width: int
    answer_by: float | None = None
    seconds: list[float] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    throughput: float = 0.0
    errors: int = 0
    coordinator_late: Late | None = None
    machine_late: Late | None = None
    collections: list[float] = field(default_factory=list)


class Requests:
    """Requests to a cluster of nodes that sleep.

    Args:
        cluster: the cluster.
        measured: where to note what becomes of them.
    """

    def __init__(self, cluster: SleepingCluster, measured: Measured) -> None:
        self.cluster = cluster
        self.measured = measured
        self.ended_at: list[float] = []

    async def send(self) -> None:
        """Send a request; fails unless each layer counted once, or is said to be missing and didn't count."""
        begun = time.monotonic()  # which is the event loop's time
        try:
            result = await self.cluster.submit(torch.zeros(1, 1, 1, 1), begun)
        except UserError:
            self.measured.errors += 1
            return
        self.ended_at.append(time.monotonic())
        self.measured.seconds.append(self.ended_at[-1] - begun)
        self.measured.missed.append(len(result.missed))
        assert _layers_that_ran(result) == sorted(result.order.layers), "a layer counted twice, or was lost"

    async def send_at(self, rate: float) -> None:
        """Send requests at random times, so many in a second.

        The first quarter of the time doesn't count for the throughput, as in the simulator.
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
        self.measured.throughput = len(in_time) / (SECONDS * 3 / 4)


class Lateness:
    """Measures how late the coordinator is, and how late the machine: ``async with Lateness(measured, machine): ...``.

    Args:
        measured: where to note it.
        machine: a pool of a process that has nothing else to do.
    """

    def __init__(self, measured: Measured, machine: Any) -> None:
        self.measured = measured
        self.machine = machine
        self.late: list[float] = []

    async def __aenter__(self) -> None:
        self._result: AsyncResult = self.machine.apply_async(ticks, [SECONDS])
        self._task = asyncio.create_task(self._tick())
        gc.callbacks.append(self._collect)

    async def __aexit__(self, *_: object) -> None:
        gc.callbacks.remove(self._collect)
        self._task.cancel()
        self.measured.coordinator_late = summary(self.late)
        self.measured.machine_late = summary(await asyncio.to_thread(self._result.get))

    async def _tick(self) -> None:
        while True:
            due = time.monotonic() + TICK
            await asyncio.sleep(TICK)
            self.late.append(time.monotonic() - due)

    def _collect(self, phase: str, _: object) -> None:
        if phase == "start":
            self._begun = time.monotonic()
        else:
            self.measured.collections.append(time.monotonic() - self._begun)


def ticks(seconds: float) -> list[float]:
    """How late this process is when it wakes up, again and again for so many seconds."""
    late = []
    end = time.monotonic() + seconds
    due = time.monotonic() + TICK
    while due < end:
        time.sleep(TICK)
        late.append(time.monotonic() - due)
        due = time.monotonic() + TICK
    return late


def summary(late: list[float]) -> Late:
    """The 99th percentile and the most."""
    return float(np.percentile(late, 99)), max(late)


def _layers_that_ran(result: Result) -> list[int]:
    """The layers that the state says to have run once; a layer that ran twice is there twice."""
    layers: list[int] = []
    for layer, times in enumerate(result.logits.tolist()):
        layers += [layer] * round(times)
    return layers


async def measure_widths(address: str | None, sleep: float, output: Path | None) -> None:
    """Measure each width on twelve processes, alone and at 80% load, and then ``answer_by``; prints a table.

    Args:
        address: of the Ray cluster on whose machines the processes are; by default all are on this one.
        sleep: how long the nodes sleep for a step, in seconds.
        output: a JSON file for what was measured, or None for no file.
    """
    with multiprocessing.get_context("spawn").Pool(1) as machine:
        connect(address, STEADY.nodes)
        async with SleepingCluster() as cluster:
            load_before = os.getloadavg()[0]
            measured = await _measure_all(cluster, sleep, machine)
            about = {
                "device": device_name(torch.device("cpu")),
                "cores": os.cpu_count(),
                "real time": os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR),
                "load average": [load_before, os.getloadavg()[0]],
                "behind an address": address is not None,
                "seconds of sleep": sleep,
            }
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(markdown(HEADER, [row(point, measured[0]) for point in measured]))
    if output is not None:
        content = {"machine": about, "measured": [asdict(point) for point in measured]}
        write_whole(output, json.dumps(content) + "\n")


async def _measure_all(cluster: SleepingCluster, sleep: float, machine: Any) -> list[Measured]:
    """Every width alone, with the widths in turns; every width at 80% load; and ``answer_by`` at half load and 80%."""
    scenario = replace(STEADY, seconds=sleep)
    alone = {width: Measured("alone", width) for width in WIDTHS}
    chance = random.Random(0)
    for _ in range(ROUNDS):
        # In a new sequence each time, so that a slow phase of the machine affects all widths alike.
        for width in sorted(WIDTHS, key=lambda _: chance.random()):
            await cluster.begin(scenario, Policy(width=width))
            await Requests(cluster, Measured("warm-up", width)).send()
            for _ in range(ALONE):
                await Requests(cluster, alone[width]).send()

    # All widths get the same load, that of 80% of what width 1 does at most.
    await cluster.begin(scenario, Policy())
    rate = LOAD * (await cluster.measure(scenario))["requests/s"]
    loaded = []
    for width in WIDTHS:
        measured = Measured("80%", width)
        await cluster.begin(scenario, Policy(width=width))
        await Requests(cluster, Measured("warm-up", width)).send()
        async with Lateness(measured, machine):
            await Requests(cluster, measured).send_at(rate)
        loaded.append(measured)

    for share in (0.5, LOAD):
        for answer_by in ANSWER_BY:
            measured = Measured(f"{share:.0%}, a kill and a stop", 4, answer_by)
            async with Lateness(measured, machine):
                await _answer_in_time(cluster, scenario, measured, rate * share / LOAD)
            loaded.append(measured)
    return [*alone.values(), *loaded]


async def _answer_in_time(cluster: SleepingCluster, scenario: Scenario, measured: Measured, rate: float) -> None:
    """Answer requests in time while a node is killed and another one is stopped."""
    policy = Policy(width=measured.width, answer_by=measured.answer_by, step_deadline=0.5)
    await cluster.begin(scenario, policy)
    loop = asyncio.get_running_loop()
    killed = cluster.process("node1")
    stopped = cluster.process("node2")
    loop.call_later(SECONDS / 4, os.kill, killed, signal.SIGKILL)
    loop.call_later(SECONDS / 2, os.kill, stopped, signal.SIGSTOP)
    await Requests(cluster, measured).send_at(rate)
    # The next measurement needs it again.
    os.kill(stopped, signal.SIGCONT)


HEADER = [
    "load",
    "width",
    "answer by, s",
    "p50, s",
    "of width 1",
    "p95, s",
    "p99, s",
    "longest, s",
    "requests/s",
    "missed",
    "errors",
    "coordinator late, p99 and most, ms",
    "machine late, p99 and most, ms",
    "longest collection, ms",
]


def row(point: Measured, reference: Measured) -> list[str]:
    """A row under HEADER; shares are those of ``reference``."""
    p50, p95, p99 = np.percentile(point.seconds, [50, 95, 99])
    return [
        point.load,
        str(point.width),
        "" if point.answer_by is None else f"{point.answer_by:g}",
        f"{p50:.3f}",
        f"{p50 / np.median(reference.seconds):.2f}",
        f"{p95:.3f}",
        f"{p99:.3f}",
        f"{max(point.seconds):.3f}",
        f"{point.throughput:.2f}" if point.throughput else "",
        f"{fmean(point.missed):.2f}",
        str(point.errors),
        _late(point.coordinator_late),
        _late(point.machine_late),
        f"{1000 * max(point.collections, default=0):.0f}",
    ]


def _late(late: Late | None) -> str:
    return "" if late is None else ", ".join(f"{1000 * seconds:.0f}" for seconds in late)
