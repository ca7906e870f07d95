"""Measures serving: on a cluster that serves over HTTP, in the simulator, and on a cluster beside the simulator.

A load test of ``layershuffle serve``: requests a second and latency over HTTP, while nodes are killed. It
kills processes of this machine, so the nodes must run here, and fails unless each request gets exactly one answer:

    LAYERSHUFFLE_TOKEN=secret layershuffle serve best.ckpt --nodes 6 &
    LAYERSHUFFLE_TOKEN=secret python -m benchmarks.serving load http://127.0.0.1:8000 picture.png --kill 2

The simulator's ways of routing against the rate of kills, patience and so on, in two minutes; and the same scenarios
on a real Ray cluster and in the simulator, in four minutes. Its nodes sleep in place of computing:

    python -m benchmarks.serving sweeps docs/results/serving/sweeps.json
    python -m benchmarks.serving cluster docs/results/serving/cluster.json
"""

import argparse
import asyncio
import json
import math
import os
import random
import signal
import threading
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import ray
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layershuffle.files import write_whole
from layershuffle.orders.order import Order, seeded
from layershuffle.results.figures import COLOURS, save
from layershuffle.results.tables import markdown
from layershuffle.serving.cluster import Cluster
from layershuffle.serving.ideal import ideal_throughput
from layershuffle.serving.policy import Policy
from layershuffle.serving.ray_connection import connect
from layershuffle.serving.router import Router
from layershuffle.serving.scenario import Scenario, sample_machines
from layershuffle.serving.simulator import simulate


async def load(url: str, picture: bytes, requests: int, clients: int, kill: int) -> None:
    """Send the requests, from so many clients at a time, and kill the nodes evenly spread among them."""
    headers = {"Authorization": f"Bearer {os.environ['LAYERSHUFFLE_TOKEN']}"}
    kills = {requests * (at + 1) // (kill + 1) for at in range(kill)}
    seconds, orders, killed = [], Counter(), []
    numbers = iter(range(requests))
    async with aiohttp.ClientSession(url, headers=headers) as session:

        async def client() -> None:
            for number in numbers:
                if number in kills:
                    async with session.get("/state") as answer:
                        living = [n for n in (await answer.json())["nodes"] if n["status"] in ("idle", "busy")]
                    killed.append(living[-1]["node"])
                    os.kill(living[-1]["process"], signal.SIGKILL)
                before = time.perf_counter()
                async with session.post("/predict", data=picture) as answer:
                    answer.raise_for_status()
                    orders[(await answer.json())["order"]] += 1
                seconds.append(time.perf_counter() - before)

        start = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        taken = time.perf_counter() - start
        async with session.get("/state") as answer:
            state = await answer.json()
    assert len(seconds) == requests
    p50, p95 = np.percentile(seconds, [50, 95])
    print(f"{requests} requests, each answered once, in {len(orders)} orders; killed: {', '.join(killed) or 'none'}")
    print(f"{requests / taken:.1f} requests/s with {clients} clients, p50 {p50:.3f} s, p95 {p95:.3f} s")
    print(f"of the cluster: {state['failed']} failed, {state['missed']} layers missed, {state['late']} late answers")


SEEDS = range(3)
ROUTINGS = dict(zip(("any", "sequential", "chain", "path"), COLOURS))
VOLUNTEERS = Scenario(nodes=24, duration=3600)
LIMITS: dict[str, Any] = {"max_missed": 6, "patience": 20.0, "step_deadline": 120.0, "request_deadline": 3600.0}
POINTS: dict[str, dict[float, dict[str, float]]] = {
    "kills per node and hour": {0: {"lifetime": 0}, **{rate: {"lifetime": 3600 / rate} for rate in (1, 2, 4, 8)}},
    "patience, s": {patience: {"lifetime": 900, "patience": patience} for patience in (2.5, 5, 10, 20, 40, 80)},
    "requests in flight per node": {window: {"window": window} for window in (0.25, 0.5, 1, 2, 4)},
    "straggler factor": {factor: {"straggler": factor} for factor in (1, 2, 4, 8, 16)},
    "nodes per layer": {replicas: {"nodes": 12 * replicas} for replicas in (1, 2, 4, 8)},
    "requests of a burst": {burst: {"lifetime": 0, "burst": burst} for burst in (1, 6, 12, 24, 48, 96)},
}
"""What each sweep changes of VOLUNTEERS and LIMITS, by the value that is drawn on its axis."""
MEASURES = {
    "throughput": "requests/s, % of the bound",
    "p95": "p95, s",
    "missed": "layers missed",
    "makespan": "makespan, s",
}
PANELS = {
    "kills per node and hour": ["throughput", "p95", "missed"],
    "patience, s": ["throughput", "p95", "missed"],
    "requests in flight per node": ["throughput", "p95"],
    "straggler factor": ["throughput", "p95"],
    "nodes per layer": ["throughput"],
    "requests of a burst": ["makespan"],
}


def sweep(output: Path) -> None:
    """Simulate every way of routing at every point; writes the outcomes, the figure beside them, and prints tables."""
    found = []
    for sweep, points in POINTS.items():
        for value, changes in points.items():
            limits = {name: changes.get(name, limit) for name, limit in LIMITS.items()}
            scenario = replace(VOLUNTEERS, **{name: to for name, to in changes.items() if name not in LIMITS})
            policies = [Policy(routing, on_loss, **limits) for routing in ROUTINGS for on_loss in ("reassign", "skip")]
            for policy in policies:
                if policy.on_loss == "reassign" and sweep.startswith("patience"):
                    continue
                about = {"sweep": sweep, "value": value, "routing": policy.routing, "on_loss": policy.on_loss}
                found.append({**about, "seeds": [run(scenario, policy, seed) for seed in SEEDS]})
    write_whole(output, json.dumps({"scenario": vars(VOLUNTEERS), "limits": LIMITS, "found": found}) + "\n")
    save(draw(found), output.with_suffix(".png"))
    for sweep, measures in PANELS.items():
        for measure in measures:
            lines = {(each["routing"], each["on_loss"]): [] for each in found if each["sweep"] == sweep}
            for each in found:
                if each["sweep"] == sweep:
                    lines[each["routing"], each["on_loss"]].append(f"{mean(each, measure):.3g}")
            print(
                markdown(
                    [f"{measure} by {sweep}", *map(str, POINTS[sweep])], [[" ".join(k), *v] for k, v in lines.items()]
                )
            )


def run(scenario: Scenario, policy: Policy, seed: int) -> dict[str, float]:
    """The measures of one simulation. The bound is that of all nodes for the share of time that they are there."""
    outcome = simulate(scenario, policy, seed)
    there = scenario.lifetime / (scenario.lifetime + scenario.absence) if scenario.lifetime else 1.0
    capacity = Counter()
    for held, seconds in sample_machines(scenario, seeded(seed, "nodes")):
        capacity[held] += there / seconds
    bound = ideal_throughput(capacity, scenario.layers)
    measures = {
        "requests/s": outcome.throughput,
        "throughput": 100 * outcome.throughput / bound,
        "makespan": scenario.burst / outcome.throughput,
        "p50": outcome.latency[0],
        "p95": outcome.latency[1],
        "missed": outcome.missed,
        "failed": outcome.failed,
    }
    return {name: float(f"{value:.4g}") for name, value in measures.items()}


def mean(found: dict[str, Any], measure: str) -> float:
    """The mean over the seeds."""
    return fmean(seed[measure] for seed in found["seeds"])


def draw(found: list[dict[str, Any]]) -> Figure:
    """A panel for each measure of each sweep, and in it a line for each way of routing: the mean over the seeds."""
    drawn = Figure(figsize=(12, 8), layout="constrained")
    axes = iter(drawn.subplots(3, 4).flat)
    for sweep, measures in PANELS.items():
        for measure in measures:
            axis = next(axes)
            for routing, colour in ROUTINGS.items():
                for on_loss, style in (("reassign", "-"), ("skip", "--")):
                    points = {
                        each["value"]: mean(each, measure)
                        for each in found
                        if (each["sweep"], each["routing"], each["on_loss"]) == (sweep, routing, on_loss)
                    }
                    if on_loss == "skip" or measure != "missed":
                        axis.plot([*points], [*points.values()], style, color=colour, marker=".")
            axis.set(xlabel=sweep, ylabel=MEASURES[measure], ylim=(0, None))
            if not sweep.startswith("kills"):
                axis.set_xscale("log")
            axis.set_xticks([*POINTS[sweep]], [f"{value:g}" for value in POINTS[sweep]])
            axis.minorticks_off()
            axis.spines[["top", "right"]].set_visible(False)
            axis.grid(axis="y", alpha=0.3)
    handles = [Line2D([], [], color=colour, label=routing) for routing, colour in ROUTINGS.items()]
    handles += [
        Line2D([], [], color="grey", linestyle=style, label=f"on loss {name}")
        for name, style in (("reassign", "-"), ("skip", "--"))
    ]
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return drawn


STEADY = Scenario(nodes=12, seconds=0.05, spread=0.0, noise=0.0, lifetime=0.0, absence=0.0, loading=0.0, duration=12.0)
SCENARIOS = {
    "equal nodes": STEADY,
    "uneven nodes": replace(STEADY, spread=0.5),
    "noisy service": replace(STEADY, noise=0.5),
    "burst of 12": replace(STEADY, burst=12),
    "3 kills, reassign": replace(STEADY, kills=3),
    "3 kills, skip": replace(STEADY, kills=3),
}
BURSTS = 5
SIDES = ("cluster", "simulator")


class SleepingNode:
    """A node that holds nothing and sleeps in place of computing, for as long as the simulator's nodes compute."""

    def __init__(self) -> None:
        self.held: set[int] = set()

    def set_up(self, held: tuple[int, ...], seconds: float, noise: float) -> None:
        """Hold these layers, and take so many seconds for one; ``noise`` is that of ``Scenario``."""
        self.held, self.seconds, self.noise = set(held), seconds, noise

    def hold(self, index: int, part: None, step: None) -> None:
        """Hold another layer."""
        self.held.add(index)

    def weights(self) -> dict[int, str]:
        """A fingerprint of each layer that it holds."""
        return dict.fromkeys(self.held, "")

    def process(self) -> int:
        """The id of the process."""
        return os.getpid()

    def run(self, tokens: np.ndarray, context: None, indices: tuple[int, ...], position: int) -> np.ndarray:
        """Sleep for each layer, and return the tokens as they are."""
        for _ in indices:
            time.sleep(self.seconds * math.exp(random.gauss(-(self.noise**2) / 2, self.noise)))
        return tokens

    @ray.method(concurrency_group="watch")
    def watch(self) -> None:
        """Never returns: the call fails when the process ends."""
        threading.Event().wait()


class SleepingCluster(Cluster):
    """A cluster of nodes that sleep. Its processes are started once, and take part in one scenario after the other."""

    def __init__(self) -> None:
        model: Any = SimpleNamespace(order=Order(range(STEADY.layers)), image_shape=(1, 1, 1))
        super().__init__(model, STEADY.nodes)
        self.killed: dict[str, float] = {}
        self.detection: list[float] = []

    async def _start_nodes(self) -> None:
        self._parts: Any = [None] * STEADY.layers
        self._fingerprints = [""] * STEADY.layers
        await self.begin(STEADY, Policy())

    def _embed(self, images: torch.Tensor) -> tuple[np.ndarray, None]:
        return np.zeros((1, 17, 48), np.float32), None

    def _classify(self, flight: Any) -> torch.Tensor:
        return torch.empty(0)

    def _lose(self, name: str) -> None:
        if name in self.killed:
            self.detection.append(self._loop.time() - self.killed.pop(name))
        super()._lose(name)

    async def begin(self, scenario: Scenario, policy: Policy) -> None:
        """Let all nodes take part in a scenario; those that were killed are started again."""
        self.policy, self.router = policy, Router(scenario.layers, policy)
        start = ray.remote(max_restarts=0, num_cpus=1, concurrency_groups={"watch": 1})(SleepingNode).remote
        nodes = {f"node{at}": node for at, node in enumerate(sample_machines(scenario, seeded(0, "nodes")))}
        living = self._workers.keys() - self._gone.keys()
        actors = {name: self._workers[name] if name in living else start() for name in nodes}
        await asyncio.gather(*(actors[name].set_up.remote(*node, scenario.noise) for name, node in nodes.items()))
        for name, node in nodes.items():
            await self.join(name, actors[name], node.layers)

    def kill(self, name: str) -> None:
        """Kill the process of a node."""
        self.killed[name] = self._loop.time()
        os.kill(self._processes[name], signal.SIGKILL)

    async def measure(self, scenario: Scenario) -> dict[str, float]:
        """What ``simulate`` finds of a scenario, on the real clock."""
        begun, warm_up = self._loop.time(), 0.0 if scenario.burst else scenario.duration / 4
        ended: list[tuple[float, int]] = []

        async def client() -> None:
            while (now := self._loop.time() - begun) < scenario.duration:
                result = await self.submit(torch.zeros(1, 1, 1, 1))
                if warm_up <= (now := self._loop.time() - begun) < scenario.duration:
                    ended.append((now, len(result.missed)))
                if scenario.burst:
                    return

        for at in range(scenario.kills):
            after = warm_up + (scenario.duration - warm_up) * (at + 1) / (scenario.kills + 1)
            self._loop.call_later(after, self.kill, f"node{at}")
        await asyncio.gather(*(client() for _ in range(scenario.burst or scenario.nodes)))
        measured = ended[-1][0] if scenario.burst else scenario.duration - warm_up
        return {"requests/s": len(ended) / measured, "missed": fmean(missed for _, missed in ended)}


async def compare_with_simulator(output: Path) -> None:
    """Run each scenario on the cluster and in the simulator; writes what was found, and prints a table."""
    found = []
    connect(None, STEADY.nodes)
    async with SleepingCluster() as cluster:
        alone = replace(STEADY, burst=1)
        await cluster.measure(alone)
        message = fmean([1 / (await cluster.measure(alone))["requests/s"] for _ in range(BURSTS)]) / STEADY.layers
        message -= STEADY.seconds
        for name, scenario in SCENARIOS.items():
            for routing in ("any", "sequential"):
                policy = Policy(routing, "skip" if "skip" in name else "reassign", patience=0.2)
                runs = []
                for _ in range(BURSTS if scenario.burst else 1):
                    await cluster.begin(scenario, policy)
                    runs.append(await cluster.measure(scenario))
                found.append({"scenario": name, "routing": routing, "cluster": runs})
        detection = fmean(cluster.detection)
    rows = []
    for each in found:
        scenario = replace(SCENARIOS[each["scenario"]], latency=message, detection=detection)
        policy = Policy(each["routing"], "skip" if "skip" in each["scenario"] else "reassign", patience=0.2)
        if scenario.kills or scenario.burst:
            outcomes = [simulate(scenario, policy, seed) for seed in range(20)]
        else:  # The nodes are those of the cluster, so there is one seed.
            outcomes = [simulate(replace(scenario, duration=20 * scenario.duration), policy)]
        each["simulator"] = [{"requests/s": o.throughput, "missed": o.missed} for o in outcomes]
        means = {side: [fmean(run[of] for run in each[side]) for of in ("requests/s", "missed")] for side in SIDES}
        (real, missed), (simulated, would_miss) = means["cluster"], means["simulator"]
        error = f"{100 * (simulated / real - 1):+.1f}"
        row = [
            each["scenario"],
            each["routing"],
            f"{real:.2f}",
            f"{simulated:.2f}",
            error,
            f"{missed:.2f}",
            f"{would_miss:.2f}",
        ]
        rows.append(row)
    print(
        markdown(
            ["scenario", "routing", "cluster, requests/s", "simulator", "error, %", "layers missed", "simulator"], rows
        )
    )
    print(
        f"a message and its answer took {1000 * message:.1f} ms, and it took {1000 * detection:.0f} ms to notice a kill"
    )
    write_whole(output, json.dumps({"message": message, "detection": detection, "found": found}) + "\n")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    loading = commands.add_parser("load", help="load a cluster that serves over HTTP")
    loading.add_argument("url")
    loading.add_argument("picture", type=Path)
    loading.add_argument("--requests", type=int, default=300)
    loading.add_argument("--clients", type=int, default=12)
    loading.add_argument("--kill", type=int, default=0, help="how many nodes to kill")
    for name, text in (("sweeps", "simulate ways of routing"), ("cluster", "compare a cluster with the simulator")):
        commands.add_parser(name, help=text).add_argument("output", type=Path, help="a .json file to write")
    args = parser.parse_args()
    if args.command == "sweeps":
        sweep(args.output)
    elif args.command == "cluster":
        asyncio.run(compare_with_simulator(args.output))
    else:
        asyncio.run(load(args.url, args.picture.read_bytes(), args.requests, args.clients, args.kill))


if __name__ == "__main__":
    main()
