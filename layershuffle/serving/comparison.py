"""Policies side by side in simulation: a table and a picture."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from math import isnan
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from layershuffle.results.figures import COLOURS
from layershuffle.results.tables import Rows
from layershuffle.serving.router import Policy
from layershuffle.serving.simulator import Scenario, simulate

Found = dict[tuple[int, str], list[dict[str, Any]]]
"""The outcomes of each seed, by number of nodes and name of the policy."""


def compare(
    scenario: Scenario,
    nodes: Sequence[int],
    policies: Mapping[str, Policy],
    seeds: Sequence[int],
    on_ended: Callable[..., Any] | None = None,
) -> Found:
    """Simulate each policy with each number of nodes and each seed."""
    found: Found = {}
    for count in nodes:
        for name, policy in policies.items():
            outcomes = [simulate(replace(scenario, nodes=count), policy, seed, on_ended) for seed in seeds]
            found[count, name] = [{**asdict(outcome), "share": outcome.share} for outcome in outcomes]
    return found


def table(found: Found) -> tuple[list[str], Rows]:
    """The header and the rows of a table, with means over the seeds, and the lowest and the highest share."""
    header = ["nodes and policy", "requests/s", "% of ideal", "p50 s", "p95 s", "layers missed", "% failed"]
    rows = []
    for (nodes, name), outcomes in found.items():
        shares = [100 * outcome["share"] for outcome in outcomes]
        spread = f" ({min(shares):.0f}-{max(shares):.0f})" if len(shares) > 1 else ""
        share = "no ideal" if any(map(isnan, shares)) else f"{fmean(shares):.1f}{spread}"
        rows.append(
            [
                f"{nodes:,} {name}",
                f"{fmean(outcome['throughput'] for outcome in outcomes):.3g}",
                share,
                *(f"{fmean(outcome['latency'][at] for outcome in outcomes):.0f}" for at in (0, 1)),
                f"{fmean(outcome['missed'] for outcome in outcomes):.2f}",
                f"{100 * fmean(outcome['failed'] for outcome in outcomes):.1f}",
            ]
        )
    return header, rows


def figure(found: Found, title: str = "") -> Figure:
    """Throughput as a share of the ideal, and latency, by the number of nodes; a line for each policy.

    Lines are means over the seeds, and the bands of the throughput reach from the lowest to the highest.
    """
    drawn = Figure(figsize=(9.6, 4.4), layout="constrained")
    drawn.suptitle(title)
    throughput, latency = drawn.subplots(1, 2)
    names = list(dict.fromkeys(name for _, name in found))
    for colour, name in zip(COLOURS, names):
        points = {nodes: outcomes for (nodes, policy), outcomes in found.items() if policy == name}
        x = list(points)
        for axis, style, values in (
            (throughput, "-", [[100 * outcome["share"] for outcome in at] for at in points.values()]),
            (latency, "--", [[outcome["latency"][0] for outcome in at] for at in points.values()]),
            (latency, "-", [[outcome["latency"][1] for outcome in at] for at in points.values()]),
        ):
            axis.plot(x, [fmean(each) for each in values], style, color=colour, marker=".")
            if axis is throughput:
                axis.fill_between(x, [*map(min, values)], [*map(max, values)], color=colour, alpha=0.12, linewidth=0)
    throughput.axhline(100, color="grey", linewidth=0.8, linestyle=":")
    throughput.set(ylabel="throughput, % of the ideal with all layers", ylim=(0, None))
    latency.set(ylabel="seconds: median (dashed), 95th percentile", ylim=(0, None))
    for axis in (throughput, latency):
        axis.set(xlabel="nodes", xscale="log")
        axis.set_xticks(sorted({nodes for nodes, _ in found}), [f"{n:,}" for n in sorted({n for n, _ in found})])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", alpha=0.3)
    handles = [Line2D([], [], color=colour, label=name) for colour, name in zip(COLOURS, names)]
    drawn.legend(handles=handles, loc="outside lower center", ncols=len(names), frameon=False)
    return drawn
