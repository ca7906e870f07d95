"""Policies side by side in simulation: a table and a picture."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import isnan
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layershuffle.errors import UserError, shown
from layershuffle.results.figures import COLOURS, legend_below
from layershuffle.results.tables import Rows
from layershuffle.serving.actions import Ended
from layershuffle.serving.checks import MOST
from layershuffle.serving.policy import Policy
from layershuffle.serving.scenario import Scenario
from layershuffle.serving.simulator import simulate

Outcomes = dict[tuple[int, str], list[dict[str, Any]]]
"""The outcome of each seed, as files have it, by number of nodes and name of the policy."""
MOST_OUTCOMES = 1000
"""How many outcomes a file may have."""
LONGEST_NAME = 100
"""How many characters the name of a policy may have."""


def read_outcomes(content: Any) -> Outcomes:
    """Check the "outcomes" of a file of ``layershuffle simulate``, and return them by number of nodes and policy.

    The report reads whatever files lie in a folder, so the content may be anything. Of what is returned, the table and
    the figure can rely on the types and the bounds.

    Raises:
        UserError: if the content can't be outcomes.
    """
    if not isinstance(content, list) or not 0 < len(content) <= MOST_OUTCOMES:
        raise UserError(f"its outcomes can't be {shown(content)}")
    outcomes: Outcomes = {}
    for outcome in content:
        if not _is_outcome(outcome):
            raise UserError(f"an outcome can't be {shown(outcome)}")
        outcomes[outcome["nodes"], outcome["policy"]] = outcome["seeds"]
    return outcomes


def _is_outcome(value: Any) -> bool:
    """Whether a value has a number of nodes, the name of a policy, and what each seed has shown."""
    if not isinstance(value, dict):
        return False
    nodes = value.get("nodes")
    policy = value.get("policy")
    seeds = value.get("seeds")
    if not isinstance(nodes, int) or not 0 < nodes <= MOST:
        return False
    if not isinstance(policy, str) or len(policy) > LONGEST_NAME:
        return False
    if not isinstance(seeds, list) or not 0 < len(seeds) <= MOST_OUTCOMES:
        return False
    return all(_is_outcome_of_seed(seed) for seed in seeds)


def _is_outcome_of_seed(value: Any) -> bool:
    """Whether a value has every number of a simulation that the table and the figure show."""
    if not isinstance(value, dict):
        return False
    latency = value.get("latency")
    # Files of earlier versions have no 99th percentile.
    if not isinstance(latency, list) or len(latency) not in (2, 3):
        return False
    numbers = [value.get(name) for name in ("throughput", "share", "missed", "failed")]
    return all(_is_measured(number) for number in [*numbers, *latency])


def _is_measured(value: Any) -> bool:
    """Whether a value is a number from 0 to ``MOST``, or NaN where nothing could be measured."""
    # To Python, true is a number too.
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    # NaN alone differs from itself. math.isnan would fail for a whole number of hundreds of digits.
    is_nan = value != value
    return is_nan or 0 <= value <= MOST


def compare(
    scenario: Scenario,
    cluster_sizes: Sequence[int],
    policies: Mapping[str, Policy],
    seeds: Sequence[int],
    on_ended: Callable[[Ended, float], Any] | None = None,
    advance: Callable[[float, int], Any] = lambda done, total: None,
) -> Outcomes:
    """Simulate each policy with each number of nodes and each seed.

    Args:
        scenario: the nodes, and the load on them; the number of nodes in it is not used.
        cluster_sizes: numbers of nodes.
        policies: the policies by name.
        seeds: one simulation is run for each.
        on_ended: see ``simulate``.
        advance: called again and again with the number of simulations that are done, and with that of all. The one that
            runs counts by how much of its time has passed.

    Returns:
        For each number of nodes and policy, a list with the fields of ``Outcome`` and its ``share`` for each seed.
    """
    total = len(cluster_sizes) * len(policies) * len(seeds)
    done = 0

    def request_ended(ended: Ended, now: float) -> None:
        if on_ended is not None:
            on_ended(ended, now)
        # A simulation of thousands of nodes takes minutes, in which a count of whole simulations would stand still.
        advance(done + now / scenario.duration, total)

    outcomes: Outcomes = {}
    for nodes in cluster_sizes:
        sized = replace(scenario, nodes=nodes)
        for name, policy in policies.items():
            by_seed = []
            for seed in seeds:
                outcome = simulate(sized, policy, seed, request_ended)
                by_seed.append({**asdict(outcome), "share": outcome.share})
                done += 1
                advance(done, total)
            outcomes[nodes, name] = by_seed
    return outcomes


def table(outcomes: Outcomes) -> tuple[list[str], Rows]:
    """The header and the rows of a table, with means over the seeds, and the lowest and the highest share."""
    header = ["nodes and policy", "requests/s", "% of ideal", "p50 s", "p95 s", "p99 s", "layers missed", "% failed"]
    rows = []
    for (nodes, name), by_seed in outcomes.items():
        throughput = _mean("throughput", by_seed)
        missed = _mean("missed", by_seed)
        percent_failed = 100 * _mean("failed", by_seed)
        row = [
            f"{nodes:,} {name}",
            f"{throughput:.3g}",
            _share(by_seed),
            *_latencies(by_seed),
            f"{missed:.2f}",
            f"{percent_failed:.1f}",
        ]
        rows.append(row)
    return header, rows


def _mean(measure: str, by_seed: Sequence[Mapping[str, Any]]) -> float:
    """The mean of a measure, such as "throughput", over the seeds."""
    return fmean(outcome[measure] for outcome in by_seed)


def _latencies(by_seed: Sequence[Mapping[str, Any]]) -> list[str]:
    """The percentiles of the latency, the mean of each over the seeds, in seconds: the cells of the table."""
    # The outcome of each seed has all percentiles. Here there is one tuple for each percentile, of all seeds.
    by_percentile = zip(*(outcome["latency"] for outcome in by_seed))
    cells = []
    for of_seeds in by_percentile:
        seconds = fmean(of_seeds)
        # From a thousand up, three digits would be written with an exponent.
        digits = ".0f" if seconds >= 100 else ".3g"
        cells.append(f"{seconds:{digits}}")
    # Files of earlier versions have no 99th percentile.
    if len(cells) == 2:
        cells.append("")
    return cells


def _share(by_seed: Sequence[Mapping[str, Any]]) -> str:
    """The mean share of the ideal in percent, with the lowest and the highest of several seeds."""
    shares = [100 * outcome["share"] for outcome in by_seed]
    # Where some layer never had a node, the ideal is 0, and nothing can be a share of it.
    if any(isnan(share) for share in shares):
        return "no ideal"
    mean = f"{fmean(shares):.1f}"
    if len(shares) == 1:
        return mean
    return f"{mean} ({min(shares):.0f}-{max(shares):.0f})"


def figure(outcomes: Outcomes, title: str = "") -> Figure:
    """Throughput as a share of the ideal, and latency, by the number of nodes; a line for each policy.

    Lines are means over the seeds, and the bands of the throughput reach from the lowest to the highest.
    """
    drawn = Figure(figsize=(9.6, 4.4), layout="constrained")
    drawn.suptitle(title)
    throughput, latency = drawn.subplots(1, 2)

    # In the sequence in which they were simulated, as in the table.
    policies = list(dict.fromkeys(policy for _, policy in outcomes))
    # Of more policies than there are colours, some share one.
    colours = dict(zip(policies, itertools.cycle(COLOURS)))
    for policy, colour in colours.items():
        by_size = {}
        for (nodes, name), by_seed in outcomes.items():
            if name == policy:
                by_size[nodes] = by_seed
        _plot_policy(throughput, latency, by_size, colour)

    throughput.axhline(100, color="grey", linewidth=0.8, linestyle=":")
    throughput.set(ylabel="throughput, % of the ideal with all layers", ylim=(0, None))
    latency.set(ylabel="seconds: median (dashed), 95th percentile", ylim=(0, None))

    sizes = sorted({nodes for nodes, _ in outcomes})
    for axis in (throughput, latency):
        axis.set(xlabel="nodes", xscale="log")
        axis.set_xticks(sizes, [f"{nodes:,}" for nodes in sizes])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)

    handles = [Line2D([], [], color=colour, label=policy) for policy, colour in colours.items()]
    legend_below(drawn, handles)
    return drawn


def _plot_policy(throughput: Axes, latency: Axes, by_size: Mapping[int, Sequence[Any]], colour: str) -> None:
    """Draw the lines of one policy into both parts of the figure. Its outcomes are given by the number of nodes."""
    sizes = list(by_size)
    mean_shares = []
    lowest = []
    highest = []
    medians = []
    p95s = []
    for by_seed in by_size.values():
        shares = [100 * outcome["share"] for outcome in by_seed]
        mean_shares.append(fmean(shares))
        lowest.append(min(shares))
        highest.append(max(shares))
        medians.append(fmean(outcome["latency"][0] for outcome in by_seed))
        p95s.append(fmean(outcome["latency"][1] for outcome in by_seed))

    throughput.plot(sizes, mean_shares, "-", color=colour, marker=".")
    throughput.fill_between(sizes, lowest, highest, color=colour, alpha=0.12, linewidth=0)
    latency.plot(sizes, medians, "--", color=colour, marker=".")
    latency.plot(sizes, p95s, "-", color=colour, marker=".")
