"""The widths of ``benchmarks.serving``: latency and throughput against the number of nodes that a request may be at.

Networks in the simulator, by what travels: volunteers, nodes with 50 ms of delay, a LAN and a WAN.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import get_args

from layershuffle.choices import Wire
from layershuffle.files import write_whole
from layershuffle.results.tables import markdown
from layershuffle.serving.actions import Ended
from layershuffle.serving.policy import Policy
from layershuffle.serving.scenario import Scenario
from layershuffle.serving.simulator import simulate

SEEDS = range(3)
WIDTHS = (1, 2, 3, 4, 6, 12)
LOAD = 0.8
"""The rate of requests, as a share of what width 1 does at most."""
FAILING = 5
"""How many of the 24 nodes are killed, or stopped: a fifth."""

KILOBYTES: dict[Wire, float] = {"float32": 605, "bf16": 302.5, "int8": 152}
"""The size of the tokens of a ViT-B image as they travel."""
NEAR = Scenario(nodes=24, seconds=0.01, spread=0.5, noise=0.2, latency=0.0, lifetime=0.0, detection=0.5, loading=1.0)
NETWORKS = {
    "volunteers": Scenario(nodes=24, duration=7200),
    "50 ms": replace(NEAR, delay=0.05, duration=120),
    "LAN": replace(NEAR, delay=0.002, bandwidth=1000, duration=60),
    "WAN": replace(NEAR, delay=0.08, bandwidth=20, duration=600),
}
"""The volunteers of ``layershuffle simulate``, and nodes that take 10 ms for a layer of a ViT-B image."""
ANY = Policy(step_deadline=120.0, request_deadline=3600.0)
"""The policy in all networks, but for its width."""
ANSWER_BY = {
    "volunteers": (240.0, 180.0, 120.0),
    "50 ms": (0.3, 0.25, 0.2, 0.15),
    "LAN": (0.12, 0.09, 0.07, 0.05),
    "WAN": (3.0, 2.5, 2.0, 1.5),
}
"""The times by which requests are answered, in seconds, from more than the median at width 4 to about half of it."""
STEP_DEADLINES = {"volunteers": 120.0, "50 ms": 0.5, "LAN": 0.5, "WAN": 5.0}
"""After how many seconds a node is suspected that doesn't answer, where nodes are killed or stopped."""


@dataclass(frozen=True)
class Point:
    """What happened in a simulation.

    Attributes:
        network: the network, a key of NETWORKS.
        wire: the form in which tokens travel.
        load: "alone" with one request at a time, "80%" at that load, "full" with two requests in flight per node;
            "80%, killed" and "80%, stopped" while that happens to a fifth of the nodes.
        width: at how many nodes a request may be.
        answer_by: the time by which requests were answered, in seconds, or None.
        seed: of the simulation.
        throughput: requests that ended in a second.
        latency: the median, the 95th and the 99th percentile, in seconds.
        longest: the longest latency, in seconds.
        missed: the mean number of layers that a request missed.
        failed: the share of requests that failed.
    """

    network: str
    wire: Wire
    load: str
    width: int
    answer_by: float | None
    seed: int
    throughput: float
    latency: tuple[float, float, float]
    longest: float
    missed: float
    failed: float


def simulate_widths(output: Path) -> None:
    """Simulate each width in each network; writes the outcomes, and prints a table of each network."""
    points: list[Point] = []
    for network, scenario in NETWORKS.items():
        wires: tuple[Wire, ...] = get_args(Wire) if scenario.bandwidth else ("float32",)
        for wire in wires:
            sized = replace(scenario, kilobytes=KILOBYTES[wire])
            in_network = [*_of_network(network, wire, sized)]
            print(markdown(HEADER, rows(in_network)), flush=True)
            points += in_network
    write_whole(output, json.dumps([asdict(point) for point in points]) + "\n")


def _of_network(network: str, wire: Wire, scenario: Scenario) -> Iterator[Point]:
    """Each width alone and under load; and width 4 while nodes are killed or stopped."""
    alone = replace(scenario, window=1 / scenario.nodes)
    full = replace(scenario, window=2.0)
    for seed in SEEDS:
        for width in WIDTHS:
            yield point(network, wire, "alone", alone, replace(ANY, width=width), seed)

        at_full = point(network, wire, "full", full, ANY, seed)
        yield at_full
        loaded = replace(scenario, rate=LOAD * at_full.throughput)
        for width in WIDTHS:
            yield point(network, wire, "80%", loaded, replace(ANY, width=width), seed)
        if wire != "float32":
            continue

        four = replace(ANY, width=4, step_deadline=STEP_DEADLINES[network])
        killed = loaded if loaded.lifetime else replace(loaded, kills=FAILING)
        stopped = replace(loaded, lifetime=0.0, stopped=FAILING)
        for load, failing in (("80%, killed", killed), ("80%, stopped", stopped)):
            for answer_by in (None, *ANSWER_BY[network]):
                yield point(network, wire, load, failing, replace(four, answer_by=answer_by), seed)


def point(network: str, wire: Wire, load: str, scenario: Scenario, policy: Policy, seed: int) -> Point:
    """Simulate; fails if a request ends twice, or later than it is due."""
    ended: Counter[int] = Counter()
    seconds = [0.0]

    def on_ended(request: Ended, _: float) -> None:
        ended[request.request] += 1
        seconds.append(request.seconds)

    outcome = simulate(scenario, policy, seed, on_ended)
    assert max(ended.values()) == 1, "a request ended twice"
    if policy.answer_by is not None:
        assert max(seconds) <= policy.answer_by + 1e-6, "an answer was late"
    return Point(
        network,
        wire,
        load,
        policy.width,
        policy.answer_by,
        seed,
        outcome.throughput,
        outcome.latency,
        max(seconds),
        outcome.missed,
        outcome.failed,
    )


HEADER = [
    "network",
    "wire",
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


def rows(points: list[Point]) -> list[list[str]]:
    """Rows under HEADER, means over the seeds; shares are those of the first row of the same load."""
    by_setting: dict[tuple[str, int, float | None], list[Point]] = {}
    for measured in points:
        by_setting.setdefault((measured.load, measured.width, measured.answer_by), []).append(measured)

    table = []
    references: dict[str, list[Point]] = {}
    for (load, width, answer_by), of_seeds in by_setting.items():
        reference = references.setdefault(load, of_seeds)
        p50, p95, p99 = (mean_latency(of_seeds, index) for index in range(3))
        throughput = fmean(measured.throughput for measured in of_seeds)
        table.append(
            [
                of_seeds[0].network,
                of_seeds[0].wire,
                load,
                str(width),
                "" if answer_by is None else f"{answer_by:g}",
                f"{p50:.3g}",
                f"{p50 / mean_latency(reference, 0):.2f}",
                f"{p95:.3g}",
                f"{p99:.3g}",
                f"{max(measured.longest for measured in of_seeds):.3g}",
                f"{throughput:.3g}",
                f"{throughput / fmean(measured.throughput for measured in reference):.3f}",
                f"{fmean(measured.missed for measured in of_seeds):.2f}",
                f"{100 * fmean(measured.failed for measured in of_seeds):.2f}",
            ]
        )
    return table


def mean_latency(points: list[Point], index: int) -> float:
    """The mean over the seeds of the median (0), the 95th (1) or the 99th percentile (2), in seconds."""
    return fmean(measured.latency[index] for measured in points)
