"""Measures serving: on a cluster that serves over HTTP, in the simulator, and on a cluster beside the simulator.

A load test of ``layershuffle serve``: requests a second and latency over HTTP, while nodes are killed. It
kills processes of this machine, so the nodes must run here, and fails unless each request gets exactly one answer:

    LAYERSHUFFLE_TOKEN=secret layershuffle serve best.ckpt --nodes 6 &
    LAYERSHUFFLE_TOKEN=secret python -m benchmarks.serving load http://127.0.0.1:8000 picture.png --kill 2

The simulator's ways of routing against the rate of kills, patience and so on, in two minutes; and the same scenarios
on a real Ray cluster and in the simulator, in four minutes. Its nodes sleep in place of computing:

    python -m benchmarks.serving sweeps results/serving/sweeps.json
    python -m benchmarks.serving cluster results/serving/cluster.json

Latency and throughput against the number of nodes that a request may be at, in a few minutes in the simulator, and in
six on twelve real processes; what an early answer costs models' accuracy, and what fewer bytes do.
``results/serving.py`` makes the tables and the picture of docs/findings/serving.md of the files:

    python -m benchmarks.serving widths results/serving/widths.json
    python -m benchmarks.serving processes --output results/serving/processes.json
    python -m benchmarks.serving answers SEED0.ckpt SEED1.ckpt --output results/serving/answers.json
    python -m benchmarks.serving wire best.ckpt

``processes`` can also measure nodes behind a network that takes its time, see ``benchmarks.delayed_link``:

    ip netns add far
    python -m benchmarks.delayed_link far 10.77.0.1 10.77.0.2 --delay 0.025 &
    ray start --head --node-ip-address 10.77.0.1 --num-cpus 0
    ip netns exec far ray start --address 10.77.0.1:6379 --node-ip-address 10.77.0.2 --num-cpus 12
    RAY_AUTH_MODE=token python -m benchmarks.serving processes --address 10.77.0.1:6379 --sleep 0.001
"""

import argparse
import asyncio
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np

from benchmarks.serving_answers import measure_answers
from benchmarks.serving_cluster import compare_with_simulator
from benchmarks.serving_processes import measure_widths
from benchmarks.serving_sweeps import sweep
from benchmarks.serving_widths import simulate_widths
from benchmarks.serving_wire import measure_wire


class Load:
    """Requests that several clients send to a cluster, and what became of them.

    Args:
        picture: the content of the picture file that every request sends.
        requests: the number of requests.
        kill: the number of nodes to kill, evenly spread among the requests.

    Attributes:
        seconds: how long each answered request took.
        orders: how many requests ran in each order.
        killed: the names of the nodes that were killed.
    """

    def __init__(self, picture: bytes, requests: int, kill: int) -> None:
        self.picture = picture
        self.kill_before = {requests * number // (kill + 1) for number in range(1, kill + 1)}
        self.seconds: list[float] = []
        self.orders: Counter[str] = Counter()
        self.killed: list[str] = []

    async def client(self, session: aiohttp.ClientSession, numbers: Iterator[int]) -> None:
        """Send one request after the other, until all ``numbers``, which the clients share, are taken."""
        for number in numbers:
            if number in self.kill_before:
                await self._kill_a_node(session)
            start = time.perf_counter()
            async with session.post("/predict", data=self.picture) as answer:
                answer.raise_for_status()
                content = await answer.json()
            self.orders[content["order"]] += 1
            self.seconds.append(time.perf_counter() - start)

    async def _kill_a_node(self, session: aiohttp.ClientSession) -> None:
        """Kill the process of the last node that lives. SIGKILL leaves it no time to answer or to say goodbye."""
        async with session.get("/state") as answer:
            state = await answer.json()
        living = [node for node in state["nodes"] if node["status"] in ("idle", "busy")]
        self.killed.append(living[-1]["node"])
        os.kill(living[-1]["process"], signal.SIGKILL)


async def run_load(url: str, picture: bytes, requests: int, clients: int, kill: int) -> None:
    """Send ``requests`` from ``clients`` at a time, kill nodes meanwhile, and print speed, latency and losses."""
    load = Load(picture, requests, kill)
    numbers = iter(range(requests))
    headers = {"Authorization": f"Bearer {os.environ['LAYERSHUFFLE_TOKEN']}"}
    async with aiohttp.ClientSession(url, headers=headers) as session:
        start = time.perf_counter()
        await asyncio.gather(*(load.client(session, numbers) for _ in range(clients)))
        taken = time.perf_counter() - start
        async with session.get("/state") as answer:
            state = await answer.json()

    assert len(load.seconds) == requests, "a request was not answered, or answered twice"
    p50, p95 = np.percentile(load.seconds, [50, 95])
    killed = ", ".join(load.killed) or "none"
    print(f"{requests} requests, each answered once, in {len(load.orders)} orders; killed: {killed}")
    print(f"{requests / taken:.1f} requests/s with {clients} clients, p50 {p50:.3f} s, p95 {p95:.3f} s")
    print(f"of the cluster: {state['failed']} failed, {state['missed']} layers missed, {state['late']} late answers")


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
    commands.add_parser("widths", help="simulate widths").add_argument(
        "output", type=Path, help="a .json file to write"
    )
    processes = commands.add_parser("processes", help="measure widths on real processes")
    processes.add_argument("--address", help="of a Ray cluster, on whose machines the processes are then")
    processes.add_argument("--sleep", type=float, default=0.05, help="the seconds that nodes sleep for a step")
    processes.add_argument("--output", type=Path, help="a .json file to write")
    answers = commands.add_parser("answers", help="measure accuracy against the time by which requests are answered")
    answers.add_argument("checkpoints", nargs="+", help="one for each seed of the simulation")
    answers.add_argument("--images", type=int, default=500, help="how many test images to classify in each order")
    answers.add_argument("--output", type=Path, required=True, help="a .json file to write")
    commands.add_parser("wire", help="measure forms of what travels").add_argument("checkpoint")
    args = parser.parse_args()

    if args.command == "sweeps":
        sweep(args.output)
    elif args.command == "widths":
        simulate_widths(args.output)
    elif args.command == "processes":
        asyncio.run(measure_widths(args.address, args.sleep, args.output))
    elif args.command == "answers":
        measure_answers(args.checkpoints, args.images, args.output)
    elif args.command == "wire":
        measure_wire(args.checkpoint)
    elif args.command == "cluster":
        asyncio.run(compare_with_simulator(args.output))
    else:
        asyncio.run(run_load(args.url, args.picture.read_bytes(), args.requests, args.clients, args.kill))


if __name__ == "__main__":
    main()
