"""Simulates how requests run through layers on many nodes that come and go, under several policies."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, get_type_hints

from rich.console import Console
from rich.progress import Progress

from layershuffle.commands.interrupts import on_interrupt
from layershuffle.commands.parser import Parser
from layershuffle.files import write_whole
from layershuffle.options import add_options
from layershuffle.progress_lines import ProgressLines
from layershuffle.serving.policy import LIMITS, POLICIES
from layershuffle.serving.scenario import Scenario

if TYPE_CHECKING:  # It takes a second to import, for which --help needn't wait.
    from layershuffle.api.simulate import Simulation

SCENARIO_HELP = {
    "layers": "Layers of the model.",
    "layers_per_node": "How many successive layers each node holds.",
    "seconds": "Seconds that the median node takes to run a layer.",
    "spread": "Standard deviation of the logarithm of the nodes' speeds.",
    "straggler": "Factor by which every tenth node is slower, beginning with the first.",
    "noise": "Standard deviation of the logarithm of a step's time on the same node.",
    "latency": "Mean time in seconds of a message to a node and its answer, exponentially distributed.",
    "delay": "Constant time in seconds that a message and its answer take in addition.",
    "bandwidth": "Bandwidth of each node's link in Mbit/s; 0 if transfers take no time.",
    "kilobytes": "Size in kB of the state that travels to a node and back; that of a ViT-B image is 605.",
    "lifetime": "Mean time in seconds that a node stays, exponentially distributed; 0 if it stays for ever.",
    "absence": "Mean time in seconds until a node returns with the same layers, exponentially distributed.",
    "detection": "Seconds until the loss of a node is noticed.",
    "loading": "Seconds that a node takes to load another layer.",
    "window": "Requests in flight per node; when one ends, the next one is submitted.",
    "rate": "Requests per second that arrive at random; if above 0, they replace those of --window.",
    "duration": "Seconds to simulate; the first quarter warms up and isn't measured.",
    "kills": "How many nodes fail for good, evenly spread over the measured time; needs --lifetime 0.",
    "stopped": "How many nodes answer nothing any more from when the measured time begins; needs --lifetime 0.",
    "burst": "If above 0, this many requests arrive at the beginning and no others; all of them are measured.",
}


def simulate_command(args: list[str] | None = None) -> Simulation:
    """Simulate as ``args`` say, by default those of the process; prints a table and returns what it shows."""
    config = _parser().parse_args(args)
    # The scenario and the policies check their numbers here, before anything slow is imported.
    scenario = Scenario(**{name: config[name] for name in SCENARIO_HELP})
    limits = {name: config[name] for name in LIMITS}
    policies = {name: replace(POLICIES[name], **limits) for name in config.policies}

    # Matplotlib takes a second to import.
    from layershuffle.api.simulate import simulate
    from layershuffle.results.figures import save
    from layershuffle.results.tables import terminal
    from layershuffle.serving.comparison import figure, table

    # Outcomes are written at the end, but the event log grows from the beginning.
    remark = "nothing was written"
    if config.event_log:
        remark = f"{config.event_log} has the orders that ran, and nothing else was written"
    with _progress() as advance, on_interrupt(remark):
        simulation = simulate(config.cluster_sizes, policies, config.seeds, scenario, config.event_log, advance)
    Console().print(terminal(*table(simulation.outcomes)))
    if config.output:
        picture = config.output.with_suffix(".png")
        write_whole(config.output, json.dumps(simulation.to_json(), indent=1, default=str) + "\n")
        save(figure(simulation.outcomes), picture)
        print(f"outcomes: {config.output}\nplot: {picture}")
    return simulation


@contextmanager
def _progress() -> Iterator[Callable[[float, int], None]]:
    """Show how many simulations are done, as a bar, or in lines of a log where stderr is no terminal.

    Yields:
        The ``advance`` of ``layershuffle.simulate``.
    """
    console = Console(stderr=True)
    lines: ProgressLines | None = None
    # In a file, rich would leave an empty line.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("simulating", total=None)

        def advance(done: float, total: int) -> None:
            nonlocal lines
            bar.update(task, completed=done, total=total)
            if lines is None:
                lines = ProgressLines("simulating", total, "simulation")
            if not console.is_terminal:
                lines.tell(done)

        yield advance


def _parser() -> Parser:
    parser = Parser(
        prog="layershuffle simulate",
        description="Simulate how requests run through the layers of a model on nodes that differ in speed, leave "
        "and return, and compare routing policies. Times are in seconds. --output writes a .json file and a picture "
        "beside it. --event_log takes one policy and one number of nodes.",
    )
    add_options(parser, "cluster_sizes", seeds=(0, 1, 2))
    parser.add_argument(
        "--policies",
        nargs="+",
        choices=POLICIES,
        default=[*POLICIES],
        help="Policies to compare. any: any remaining layer that has an idle node; sequential: the next layer on an "
        "idle node; chain: the next layer on a random node, a fast one more often; path: the chain of nodes with the "
        "least estimated time. With -skip, requests skip layers that keep them waiting; without it, other nodes load "
        "the layers that were lost.",
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
