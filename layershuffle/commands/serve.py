"""Serves a model from several processes or machines, whichever of them are up, and shows what they do."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.status import Status
from rich.table import Table

from layershuffle.choices import Wire
from layershuffle.commands.interrupts import on_interrupt
from layershuffle.commands.parser import Parser
from layershuffle.errors import UserError
from layershuffle.options import TOKEN, add_options, add_positionals
from layershuffle.plurals import counted
from layershuffle.progress_lines import ProgressLines
from layershuffle.serving.policy import OnLoss, Policy, Routing

if TYPE_CHECKING:  # These take seconds to import, for which --help needn't wait.
    from layershuffle.api.serve import ClusterOptions, Watch
    from layershuffle.serving.cluster import Cluster
    from layershuffle.serving.cluster_state import ClusterState

COLOURS = {"busy": "yellow", "idle": "green", "suspected": "magenta", "gone": "red"}
"""The colour of each status of a node."""


def serve_command(args: list[str] | None = None) -> None:
    """Serve as ``args`` say, by default those of the process, until Ctrl-C or SIGTERM or the end of ``--pictures``."""
    config = _parser().parse_args(args)
    if bool(config.pictures) != bool(config.answers):
        raise UserError("--pictures names what to classify and --answers where to write it: give both, or neither")
    # It imports torch, which takes seconds, for which a wrong option needn't wait.
    from layershuffle.api.serve import ClusterOptions

    # Each field of a policy is an option of the same name.
    policy = Policy(**{field.name: config[field.name] for field in fields(Policy)})
    options = ClusterOptions(
        nodes=config.nodes,
        policy=policy,
        most_running=config.most_running,
        address=config.address,
        wire=config.wire,
        threads=config.threads,
        accelerator=config.accelerator,
        start_seconds=config.start_seconds,
        event_log=config.event_log,
    )
    if config.pictures:
        _classify(config, options)
    else:
        _serve(config, options)


def _serve(config: Namespace, options: ClusterOptions) -> None:
    """Serve over HTTP, and show the nodes meanwhile."""
    from layershuffle.api.serve import serve

    console = Console(stderr=True)
    starting = console.status(f"starting {counted(options.nodes, 'node')}")

    def on_ready(address: str, token: str) -> None:
        # While the status is shown, rich would send what is printed to stderr, too. It is flushed for programs that
        # start this one and wait for the address.
        starting.stop()
        call = f"curl -H 'Authorization: Bearer {token}' --data-binary @PICTURE {address}/predict"
        print(f"page: {address}/#{token}\ntry:  {call}", flush=True)

    with starting:
        serve(
            config.checkpoint,
            options,
            pretrained=config.pretrained,
            img_size=config.img_size,
            host=config.host,
            port=config.port,
            most_waiting=config.most_waiting,
            top=config.top,
            on_ready=on_ready,
            watch=_watch(console, starting),
        )


def _classify(config: Namespace, options: ClusterOptions) -> None:
    """Classify the pictures, and show the nodes and the progress meanwhile."""
    from layershuffle.api.serve import classify

    console = Console(stderr=True)
    starting = console.status(f"starting {counted(options.nodes, 'node')}")
    progress = Progress(console=console)
    task = progress.add_task("classifying", total=None)
    lines: ProgressLines | None = None

    def advance(done: int, total: int) -> None:
        nonlocal lines
        progress.update(task, completed=done, total=total)
        # The first call tells how many pictures an earlier process has classified.
        if lines is None:
            lines = ProgressLines("classifying", total, "picture", done)
        if not console.is_terminal:
            lines.tell(done)

    # asyncio ends its tasks on Ctrl-C only if it finds Python's own handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with starting, on_interrupt(f"{config.answers} has what was classified, and the same command continues"):
        answers = classify(
            config.checkpoint,
            config.pictures,
            config.answers,
            options,
            pretrained=config.pretrained,
            img_size=config.img_size,
            top=config.top,
            advance=advance,
            watch=_watch(console, starting, progress),
        )
    print(f"{config.answers}: {counted(len(answers.done), 'picture')}, {answers.unreadable:,} of which can't be read")


def _parser() -> Parser:
    parser = Parser(
        prog="layershuffle serve",
        description="Serve a model whose layers are spread over nodes: processes of this machine, or of a Ray cluster. "
        "Pictures come in over HTTP. Clients need a token: that of the environment variable "
        f"{TOKEN}, or else a new one. With --pictures, the command classifies these alone and opens no port.",
    )
    add_positionals(parser, "checkpoint")
    parser.add_argument(
        "--pictures", nargs="+", default=[], help="Picture files, and folders of which all pictures are taken."
    )
    parser.add_argument(
        "--answers",
        type=Path | None,
        metavar="FILE",
        help="File (.jsonl) to which the answers to --pictures are appended; pictures that it already has are not "
        "classified again.",
    )
    add_options(parser, "top")
    _add_nodes(parser)
    _add_routing(parser)
    _add_http(parser)
    add_options(parser, "event_log", "pretrained", "img_size")
    return parser


def _add_nodes(parser: Parser) -> None:
    """Add the options of the processes that hold the layers."""
    add_options(parser, "nodes")
    parser.add_argument(
        "--address",
        type=str | None,
        help="Address of a Ray cluster, or auto for the one on this machine (default: a new one is started).",
    )
    add_options(parser, "threads", accelerator="cpu")
    parser.add_argument(
        "--start_seconds", type=PositiveFloat, default=120.0, help="Seconds that the nodes may take to start."
    )


def _add_routing(parser: Parser) -> None:
    """Add an option for each field of a ``Policy``, and how tokens travel."""
    parser.add_argument(
        "--routing",
        choices=get_args(Routing),
        default="any",
        help="Which step of a request runs next. any: any remaining layer that has an idle node; sequential: the next "
        "layer on an idle node; chain: the next layer on a random node, a fast one more often; path: the chain of "
        "nodes with the least estimated time.",
    )
    parser.add_argument(
        "--on_loss",
        choices=get_args(OnLoss),
        default="reassign",
        help="What happens to a layer whose last node is lost. reassign: another node loads it; skip: requests do "
        "without it.",
    )
    add_options(parser, "max_missed", "patience", "step_deadline", "request_deadline", "visit", "width", "answer_by")
    parser.add_argument(
        "--wire",
        choices=get_args(Wire),
        default="float32",
        help="Form in which tokens travel to nodes and back: float32 changes nothing, bf16 has half of the bytes, and "
        "int8 a quarter.",
    )


def _add_http(parser: Parser) -> None:
    """Add the options of the HTTP server, and how many requests it takes."""
    parser.add_argument(
        "--most_running", type=PositiveInt | None, help="Requests that run at a time (default: 2 per node)."
    )
    parser.add_argument(
        "--most_waiting",
        type=NonNegativeInt,
        default=64,
        help="Requests that may wait; any further one gets the status 429.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="Address to listen on; by default only this machine can connect."
    )
    parser.add_argument(
        "--port", type=NonNegativeInt, default=8000, help="Port to listen on, or 0 for any that is free."
    )


def _watch(console: Console, starting: Status, *more: RenderableType) -> Watch:
    """Show a cluster's table and ``more`` in place of the status ``starting``, four times a second, on a terminal."""

    @asynccontextmanager
    async def watch(cluster: Cluster) -> AsyncIterator[None]:
        async def refresh(live: Live) -> None:
            while True:
                live.update(Group(status(cluster.state()), *more), refresh=True)
                await asyncio.sleep(0.25)

        starting.stop()
        if not console.is_terminal:
            yield
            return
        # A thread that refreshes would read the state while it changes.
        with Live(console=console, auto_refresh=False) as live:
            refreshing = asyncio.create_task(refresh(live))
            try:
                yield
            finally:
                refreshing.cancel()

    return watch


def status(state: ClusterState) -> Group:
    """The state of a cluster as a table."""
    table = Table(box=None, header_style="bold")
    table.add_column("node")
    table.add_column("process", justify="right")
    table.add_column("status")
    table.add_column("seconds", justify="right")
    table.add_column("steps")
    for node in state.nodes:
        # The steps that it runs now stand out from those that it holds.
        steps = []
        for step in node.steps:
            text = f"[reverse]{step}[/]" if step in node.runs else str(step)
            steps.append(text)
        seconds = "" if node.seconds is None else f"{node.seconds:.3f}"
        colour = COLOURS[node.status]
        table.add_row(node.node, str(node.process), f"[{colour}]{node.status}[/]", seconds, " ".join(steps))
    summary = (
        f"{state.rate:.1f} requests/s, {state.in_flight} running, {state.waiting} waiting, {state.ended} done, "
        f"{state.failed} failed, {counted(state.missed, 'layer')} missed, "
        f"{counted(state.late, 'late answer')}"
    )
    if state.runs:
        summary += f", {state.bytes / state.runs / 1000:.1f} kB to a node and back"
    return Group(table, summary)
