"""A load test of ``layershuffle serve``: requests a second and latency over HTTP, while nodes are killed.

    LAYERSHUFFLE_TOKEN=secret layershuffle serve best.ckpt --nodes 6 &
    LAYERSHUFFLE_TOKEN=secret python -m benchmarks.serving http://127.0.0.1:8000 picture.png --kill 2

It kills processes of this machine, so the nodes must run here. The script fails unless each request gets
exactly one answer, which is a classification.
"""

import argparse
import asyncio
import os
import signal
import time
from collections import Counter
from pathlib import Path

import aiohttp
import numpy as np


async def measure(url: str, picture: bytes, requests: int, clients: int, kill: int) -> None:
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


def main() -> None:
    """Run the load test that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--kill", type=int, default=0, help="how many nodes to kill")
    args = parser.parse_args()
    asyncio.run(measure(args.url, args.picture.read_bytes(), args.requests, args.clients, args.kill))


if __name__ == "__main__":
    main()
