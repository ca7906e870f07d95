"""Simulates how requests run through layers on many nodes that come and go, under several policies."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import TYPE_CHECKING, get_type_hints

from rich.console import Console

from layershuffle.commands.parser import Parser
from layershuffle.files import write_whole
from layershuffle.options import add_options
from layershuffle.serving.policy import LIMITS, POLICIES
from layershuffle.serving.scenario import Scenario

if TYPE_CHECKING:  # It takes a second to import, for which --help needn't wait.
    from layershuffle.api.simulate import Simulation

SCENARIO_HELP = {
    "layers": "Layers of the model.",
    "layers_per_node": "How many successive layers each node holds.",
    "seconds": "Seconds that a request takes in a layer on the median node.",
    "spread": "Standard deviation of the logarithm of the nodes' speeds.",
    "straggler": "How many times as long as that every tenth node takes, beginning with the first.",
    "noise": "Standard deviation of the logarithm of a step's time on the same node.",
    "latency": "Mean seconds of a message to a node and its answer; exponentially distributed.",
    "delay": "Seconds that they take besides, always the same.",
    "bandwidth": "Mbit/s of the link of each node, or 0 if what travels takes no time.",
    "kilobytes": "Size of what travels to a node and back: 605 for a ViT-B image.",
    "lifetime": "Mean seconds for which a node stays; exponentially distributed, and 0 if it stays for ever.",
    "absence": "Mean seconds until a node comes back with the same layers; exponentially distributed.",
    "detection": "Seconds until it is noticed that a node has gone.",
    "loading": "Seconds in which a node loads another layer.",
    "window": "Requests in flight for each node; when one ends, the next one is submitted.",
    "rate": "If above 0, so many requests come in a second in place of those of --window, at random.",
    "duration": "Seconds to simulate; the first quarter warms up and isn't measured.",
    "kills": "How many nodes go for good, evenly spread over the time that is measured; needs --lifetime 0.",
    "burst": "If above 0, this many requests come at the beginning and no others, and all are measured.",
}


def simulate_command(args: list[str] | None = None) -> Simulation:
    """Simulate as ``args`` say, by default those of the process; prints a table and returns what it shows."""
    config = _parser().parse_args(args)
    scenario = Scenario(**{name: config[name] for name in SCENARIO_HELP})
    limits = {name: config[name] for name in LIMITS}
    policies = {name: replace(POLICIES[name], **limits) for name in config.policies}

    # Matplotlib takes a second to import.
    from layershuffle.api.simulate import simulate
    from layershuffle.results.figures import save
    from layershuffle.results.tables import terminal
    from layershuffle.serving.comparison import figure, table

    with Console(stderr=True).status("simulating"):
        simulation = simulate(config.cluster_sizes, policies, config.seeds, scenario, config.event_log)
    Console().print(terminal(*table(simulation.outcomes)))
    if config.output:
        picture = config.output.with_suffix(".png")
        write_whole(config.output, json.dumps(simulation.to_json(), indent=1, default=str) + "\n")
        save(figure(simulation.outcomes), picture)
        print(f"outcomes: {config.output}\nplot: {picture}")
    return simulation


def _parser() -> Parser:
    parser = Parser(
        prog="layershuffle simulate",
        description="Simulate how requests run through the layers of a model on nodes that differ in speed, go and "
        "come back: any order beside the original sequence, random chains of nodes and shortest ones. Times are in "
        "seconds. --output writes a .json file, and a picture beside it; --event_log is for one policy and one number "
        "of nodes.",
    )
    add_options(parser, "cluster_sizes", seeds=(0, 1, 2))
    parser.add_argument(
        "--policies",
        nargs="+",
        choices=POLICIES,
        default=[*POLICIES],
        help="Policies to compare. any: whichever remaining layer has an idle node; sequential: the next layer on an "
        "idle node; chain: the next layer on a node drawn at random by speed; path: on the chain of nodes with the "
        "least estimated time. With -skip a request does without layers that keep it waiting; without it, layers that "
        "were lost are loaded on other nodes.",
    )
    add_options(
        parser, "max_missed", "visit", "width", "answer_by", patience=20.0, step_deadline=120.0, request_deadline=3600.0
    )
    # An option for each field of a scenario but the number of nodes, of which --cluster_sizes takes several.
    types = get_type_hints(Scenario)
    for field in fields(Scenario):
        if field.name in SCENARIO_HELP:
            help_text = SCENARIO_HELP[field.name]
            parser.add_argument(f"--{field.name}", type=types[field.name], default=field.default, help=help_text)
    add_options(parser, "output", "event_log")
    return parser
