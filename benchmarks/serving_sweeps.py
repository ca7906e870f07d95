"""The sweeps of ``benchmarks.serving``: every way of routing in the simulator, while one thing at a time changes."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layershuffle.files import write_whole
from layershuffle.orders.order import seeded
from layershuffle.results.figures import COLOURS, save
from layershuffle.results.tables import markdown
from layershuffle.serving.ideal import ideal_throughput
from layershuffle.serving.policy import OnLoss, Policy, Routing
from layershuffle.serving.scenario import Scenario, sample_machines
from layershuffle.serving.simulator import simulate

SEEDS = range(3)
ROUTING_COLOURS = dict(zip(get_args(Routing), COLOURS))
"""The colour of each way of routing."""
LOSS_STYLES: dict[OnLoss, Any] = {"reassign": "-", "skip": "--"}
"""The line style of what happens to a layer whose last node is lost."""

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
"""What each sweep changes of VOLUNTEERS and LIMITS, by the value that stands on its axis."""
MEASURES = {
    "throughput": "requests/s, % of the bound",
    "p95": "p95, s",
    "missed": "layers missed",
    "makespan": "makespan, s",
}
"""The label of each measure's axis."""
PANELS = {
    "kills per node and hour": ["throughput", "p95", "missed"],
    "patience, s": ["throughput", "p95", "missed"],
    "requests in flight per node": ["throughput", "p95"],
    "straggler factor": ["throughput", "p95"],
    "nodes per layer": ["throughput"],
    "requests of a burst": ["makespan"],
}
"""The measures that are plotted and printed of each sweep."""


@dataclass(frozen=True)
class Point:
    """A way of routing at one point of a sweep.

    Attributes:
        sweep: the sweep's name, a key of POINTS.
        value: what stands on its axis.
        routing: how steps are routed.
        on_loss: what happens to a layer whose last node is lost.
        seeds: the measures of each simulation by name; one simulation was run for each seed.
    """

    sweep: str
    value: float
    routing: str
    on_loss: str
    seeds: list[dict[str, float]]

    def mean(self, measure: str) -> float:
        """The mean over the seeds."""
        return fmean(measures[measure] for measures in self.seeds)


def sweep(output: Path) -> None:
    """Simulate every way of routing at every point; writes the outcomes, the figure beside them, and prints tables."""
    points = []
    for name, changes_by_value in POINTS.items():
        for value, changes in changes_by_value.items():
            points += simulate_point(name, value, changes)
    content = {"scenario": vars(VOLUNTEERS), "limits": LIMITS, "found": [asdict(point) for point in points]}
    write_whole(output, json.dumps(content) + "\n")
    save(plot(points), output.with_suffix(".png"))
    for name, measures in PANELS.items():
        for measure in measures:
            print(table(name, measure, points))


def simulate_point(name: str, value: float, changes: dict[str, float]) -> list[Point]:
    """Simulate every way of routing with ``changes`` to the nodes, the load and the limits."""
    # A change is either of the policy's limits or of the scenario.
    limits = {limit: changes.get(limit, usual) for limit, usual in LIMITS.items()}
    scenario_changes: dict[str, Any] = {field: value for field, value in changes.items() if field not in LIMITS}
    scenario = replace(VOLUNTEERS, **scenario_changes)
    points = []
    for routing in ROUTING_COLOURS:
        for on_loss in LOSS_STYLES:
            # A request that can't skip layers has no patience to lose.
            if on_loss == "reassign" and name.startswith("patience"):
                continue
            policy = Policy(routing, on_loss, **limits)
            measures = [measure(scenario, policy, seed) for seed in SEEDS]
            points.append(Point(name, value, routing, on_loss, measures))
    return points


def measure(scenario: Scenario, policy: Policy, seed: int) -> dict[str, float]:
    """The measures of one simulation by name; "throughput" is in percent of what the nodes could do at most."""
    outcome = simulate(scenario, policy, seed)
    # The bound counts every node for the share of time that it is there, whether it comes and goes or not.
    presence = 1.0
    if scenario.lifetime:
        presence = scenario.lifetime / (scenario.lifetime + scenario.absence)
    capacity: defaultdict[tuple[int, ...], float] = defaultdict(float)
    for machine in sample_machines(scenario, seeded(seed, "nodes")):
        capacity[machine.layers] += presence / machine.seconds
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


def lines_of(name: str, points: Sequence[Point]) -> Iterator[tuple[Routing, OnLoss, list[Point]]]:
    """The ways of routing that a sweep has tried, each with its points: ``routing, on_loss, points``."""
    for routing in ROUTING_COLOURS:
        for on_loss in LOSS_STYLES:
            line = [
                point
                for point in points
                if point.sweep == name and point.routing == routing and point.on_loss == on_loss
            ]
            if line:
                yield routing, on_loss, line


def table(name: str, measure: str, points: Sequence[Point]) -> str:
    """A measure in a sweep as a Markdown table: a row for each way of routing, a column for each value."""
    header = [f"{measure} by {name}", *map(str, POINTS[name])]
    rows = []
    for routing, on_loss, line in lines_of(name, points):
        means = [f"{point.mean(measure):.3g}" for point in line]
        rows.append([f"{routing} {on_loss}", *means])
    return markdown(header, rows)


def plot(points: Sequence[Point]) -> Figure:
    """A panel for each measure of each sweep, and in it a line for each way of routing: the mean over the seeds."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = iter(figure.subplots(3, 4).flat)
    for name, measures in PANELS.items():
        for measure in measures:
            _plot_panel(next(axes), name, measure, points)

    # The panels share one legend: colours tell the ways of routing, and styles what happens to lost layers.
    handles = []
    for routing, colour in ROUTING_COLOURS.items():
        handles.append(Line2D([], [], color=colour, label=routing))
    for on_loss, style in LOSS_STYLES.items():
        handles.append(Line2D([], [], color="grey", linestyle=style, label=f"on loss {on_loss}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def _plot_panel(axis: Axes, name: str, measure: str, points: Sequence[Point]) -> None:
    for routing, on_loss, line in lines_of(name, points):
        # Where lost layers are reassigned, requests miss none.
        if on_loss == "reassign" and measure == "missed":
            continue
        values = [point.value for point in line]
        means = [point.mean(measure) for point in line]
        axis.plot(values, means, LOSS_STYLES[on_loss], color=ROUTING_COLOURS[routing], marker=".")
    axis.set(xlabel=name, ylabel=MEASURES[measure], ylim=(0, None))
    # The values double from point to point, but for those of kills, which begin with 0.
    if not name.startswith("kills"):
        axis.set_xscale("log")
    axis.set_xticks([*POINTS[name]], [f"{value:g}" for value in POINTS[name]])
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
