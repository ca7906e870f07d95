"""Simulates how requests run through layers on many nodes that come and go, under several policies."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layershuffle.api.arguments import check_seed
from layershuffle.errors import UserError
from layershuffle.serving.comparison import Outcomes, compare
from layershuffle.serving.event_log import EventLog
from layershuffle.serving.policy import LIMITS, POLICIES, Policy
from layershuffle.serving.scenario import Scenario


@dataclass(frozen=True)
class Simulation:
    """What a simulation has shown.

    Attributes:
        scenario: the nodes, and the load on them.
        limits: what all policies have in common, such as "patience".
        seeds: one simulation was run for each.
        outcomes: the outcome of each seed, by number of nodes and name of the policy.
    """

    scenario: Scenario
    limits: dict[str, float | None]
    seeds: tuple[int, ...]
    outcomes: Outcomes

    def to_json(self) -> dict[str, Any]:
        """The plain values that a file of ``layershuffle simulate --output`` holds."""
        outcomes = []
        for (nodes, policy), of_seeds in self.outcomes.items():
            outcomes.append({"nodes": nodes, "policy": policy, "seeds": of_seeds})
        return {
            "scenario": vars(self.scenario),
            "limits": self.limits,
            "seeds": list(self.seeds),
            "outcomes": outcomes,
        }


def simulate(
    cluster_sizes: Sequence[int] = (12, 48, 240),
    policies: Mapping[str, Policy] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    scenario: Scenario | None = None,
    event_log: str | Path | None = None,
    advance: Callable[[float, int], Any] = lambda done, total: None,
) -> Simulation:
    """Simulate each policy with each number of nodes and each seed; ``layershuffle simulate`` does the same.

    Args:
        cluster_sizes: numbers of nodes.
        policies: the policies by name; by default ``POLICIES``. They have the same limits.
        seeds: one simulation is run for each.
        scenario: the nodes, and the load on them; the number of nodes in it is not used.
        event_log: a file to which the orders that ran are appended; for one policy and one number of nodes.
        advance: called again and again with the number of simulations that are done, the one that runs in part, and
            with that of all simulations.

    Raises:
        UserError: if the scenario can't be, or ``event_log`` would take the orders of several policies.
    """
    for seed in seeds:
        check_seed(seed)
    if not cluster_sizes or not seeds:
        raise UserError("a simulation needs a number of nodes and a seed: name one of each, or more")
    policies = policies or POLICIES
    scenario = scenario or Scenario()
    if event_log and (len(policies) > 1 or len(cluster_sizes) > 1):
        raise UserError(
            "--event_log takes the orders of one policy and one number of nodes: name one after --policies and one "
            "after --cluster_sizes"
        )
    with EventLog(event_log) as log:
        outcomes = compare(scenario, cluster_sizes, policies, seeds, log.ended if event_log else None, advance)
    # All policies have the same limits, so that any of them tells what they are.
    policy = next(iter(policies.values()))
    limits = {name: getattr(policy, name) for name in LIMITS}
    return Simulation(scenario, limits, tuple(seeds), outcomes)
