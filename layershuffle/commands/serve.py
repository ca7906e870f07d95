"""Serves a model from several processes or machines, whichever of them are up, and shows what they do."""

import asyncio
import os
import secrets
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from layershuffle.checkpoints.loading import LoadedModel, load
from layershuffle.commands.parser import Parser
from layershuffle.errors import UserError
from layershuffle.serving.cluster import Cluster
from layershuffle.serving.router import Policy

TOKEN = "LAYERSHUFFLE_TOKEN"


def serve_command(args: list[str] | None = None) -> None:
    """Serve as ``args`` say, by default those of the process, until Ctrl-C or SIGTERM."""
    parser = Parser(
        prog="layershuffle serve",
        description="Serve a model whose layers are spread over nodes: processes of this machine, or of a Ray cluster. "
        "Pictures come in over HTTP. Clients need a token, which is made anew unless the environment variable "
        f"{TOKEN} holds it.",
    )
    parser.add_argument(
        "checkpoint", help="a checkpoint, an exported folder, or the name of a timm model, as for layershuffle predict"
    )
    parser.add_argument("--nodes", type=PositiveInt, default=6, help="how many nodes to start")
    parser.add_argument("--address", type=str | None, help="of a Ray cluster (default: one is started in this machine)")
    parser.add_argument("--threads", type=PositiveInt, default=1, help="threads of each node")
    parser.add_class_arguments(Policy, None)
    parser.add_argument("--window", type=PositiveInt | None, help="requests that run at a time (default: 2 per node)")
    parser.add_argument("--most_waiting", type=NonNegativeInt, default=64, help="requests that wait; others get a 429")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; the default is loopback alone")
    parser.add_argument("--port", type=NonNegativeInt, default=8000, help="the port, or 0 for any that is free")
    parser.add_argument("--log", type=Path | None, help="append events, and the orders that ran, to this file")
    parser.add_argument("--pretrained", type=str | None, help="weights for a timm model, if not to be fetched")
    parser.add_argument("--start_seconds", type=PositiveFloat, default=120.0, help="how long nodes may take to start")
    config = parser.parse_args(args)
    policy = Policy(**{each.name: config[each.name] for each in fields(Policy)})
    loaded = load(config.checkpoint, config.pretrained)
    cluster = Cluster(
        loaded.model,
        config.nodes,
        policy,
        window=config.window,
        address=config.address,
        log=config.log,
        threads=config.threads,
        start_seconds=config.start_seconds,
    )
    asyncio.run(_serve(cluster, loaded, config))


async def _serve(cluster: Cluster, loaded: LoadedModel, config: Any) -> None:
    try:
        from layershuffle.serving.door import door, listening
    except ImportError as error:
        raise UserError('serving needs aiohttp: install it with pip install "layershuffle[serving]"') from error
    console, stopped = Console(), asyncio.Event()
    token = os.environ.get(TOKEN) or secrets.token_urlsafe(24)
    async with AsyncExitStack() as stack:
        with console.status(f"starting {config.nodes} nodes"):
            await stack.enter_async_context(cluster)
        for stop in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(stop, stopped.set)
        application = door(cluster, loaded, token, config.most_waiting)
        address = await stack.enter_async_context(listening(application, config.host, config.port))
        console.print(f"page: {address}/#{token}", soft_wrap=True)
        call = f"curl -H 'Authorization: Bearer {token}' --data-binary @PICTURE {address}/predict"
        console.print(f"try:  {call}", soft_wrap=True, highlight=False)
        await stack.enter_async_context(_shown(cluster, console))
        await stopped.wait()


@asynccontextmanager
async def _shown(cluster: Cluster, console: Console) -> AsyncIterator[None]:
    """Show the table meanwhile, anew four times a second, if there is a terminal."""

    async def refresh(live: Live) -> None:
        while True:
            live.update(status(cluster.state()), refresh=True)
            await asyncio.sleep(0.25)

    if not console.is_terminal:
        yield
        return
    with Live(console=console, auto_refresh=False) as live:  # A thread that refreshes would read what changes.
        refreshing = asyncio.create_task(refresh(live))
        try:
            yield
        finally:
            refreshing.cancel()


def status(state: dict[str, Any]) -> Group:
    """The state of a cluster as a table."""
    table = Table(box=None, header_style="bold")
    for name in ("node", "process", "status", "seconds", "steps"):
        table.add_column(name, justify="right" if name in ("process", "seconds") else "left")
    colours = {"busy": "yellow", "idle": "green", "suspected": "magenta", "gone": "red"}
    for node in state["nodes"]:
        steps = " ".join(f"[reverse]{step}[/]" if step in node["runs"] else str(step) for step in node["steps"])
        seconds = "" if node["seconds"] is None else f"{node['seconds']:.3f}"
        colour = colours[node["status"]]
        table.add_row(node["node"], str(node["process"]), f"[{colour}]{node['status']}[/]", seconds, steps)
    summary = "{rate:.1f} requests/s, {in_flight} running, {waiting} waiting, {ended} done, {failed} failed, "
    return Group(table, (summary + "{missed} layers missed, {late} late answers").format(**state))
