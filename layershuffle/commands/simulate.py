"""Simulates how requests run through layers on many nodes that come and go, under several policies."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveInt
from rich.console import Console

from layershuffle.commands.parser import Parser
from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.results.figures import save
from layershuffle.results.tables import terminal
from layershuffle.serving.comparison import compare, figure, table
from layershuffle.serving.events import EventLog
from layershuffle.serving.router import Policy
from layershuffle.serving.simulator import Scenario

POLICIES = {
    "any": Policy("any"),
    "sequential": Policy("sequential"),
    "chain": Policy("chain"),
    "path": Policy("path"),
    "any-skip": Policy("any", "skip"),
    "sequential-skip": Policy("sequential", "skip"),
}


def simulate_command(args: list[str] | None = None) -> dict[str, Any]:
    """Simulate as ``args`` say, by default those of the process; prints a table and returns what was found."""
    parser = Parser(
        prog="layershuffle simulate",
        description="Simulate how requests run through the layers of a model on nodes that differ in speed, go and "
        "come back: any order beside the original sequence, random chains of nodes and shortest ones. Times are in "
        "seconds.",
    )
    parser.add_argument("--nodes", type=PositiveInt, nargs="+", default=[12, 48, 240], help="numbers of nodes")
    parser.add_argument(
        "--policies",
        nargs="+",
        choices=POLICIES,
        default=[*POLICIES],
        help="any: whichever remaining layer has an idle node; sequential: the next layer on an idle node; chain: the "
        "next layer on a node drawn at random by speed; path: on the chain of nodes with the least estimated time; "
        "with -skip a request does without layers that keep it waiting, else layers that were lost are loaded on "
        "other nodes",
    )
    parser.add_argument("--seeds", type=PositiveInt, default=3, help="how many seeds to simulate")
    parser.add_argument("--first_seed", type=NonNegativeInt, default=0, help="the seeds count up from this one")
    parser.add_argument("--max_missed", type=NonNegativeInt, default=3, help="layers that -skip may miss in a request")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds after which -skip misses layers")
    parser.add_argument("--step_deadline", type=float, default=120.0, help="seconds after which a node is suspected")
    parser.add_argument("--request_deadline", type=float, default=3600.0, help="seconds after which a request fails")
    parser.add_argument("--visit", type=PositiveInt, default=1, help="layers that a node runs in a row for a request")
    parser.add_class_arguments(Scenario, None, skip={"nodes"})
    parser.add_argument("--output", type=Path, help="write the outcomes to this .json file, and the picture beside it")
    parser.add_argument(
        "--log", type=Path, help="append the orders that ran to this event log; for one policy and one number of nodes"
    )
    config = parser.parse_args(args)
    if config.log and (len(config.policies) > 1 or len(config.nodes) > 1):
        raise UserError(
            "--log takes the orders of one policy and one number of nodes: name one after --policies and "
            "one after --nodes"
        )
    scenario = Scenario(**{each.name: config[each.name] for each in fields(Scenario) if each.name != "nodes"})
    limits = {name: config[name] for name in ("max_missed", "patience", "step_deadline", "request_deadline", "visit")}
    policies = {name: replace(POLICIES[name], **limits) for name in config.policies}
    with EventLog(config.log) as log, Console(stderr=True).status("simulating"):
        seeds = range(config.first_seed, config.first_seed + config.seeds)
        found = compare(scenario, config.nodes, policies, seeds, config.log and log.ended)
    Console().print(terminal(*table(found)))
    record = {"scenario": vars(scenario), "limits": limits, "seeds": [*seeds]}
    record["outcomes"] = [{"nodes": nodes, "policy": name, "seeds": seeds} for (nodes, name), seeds in found.items()]
    if config.output:
        write_whole(config.output, json.dumps(record, indent=1, default=str) + "\n")
        save(figure(found), config.output.with_suffix(".png"))
        print(f"saved {config.output} and {config.output.with_suffix('.png')}")
    return record
