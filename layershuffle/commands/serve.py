"""Serves a model from several processes or machines, whichever of them are up, and shows what they do."""

import asyncio
import os
import secrets
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import Progress
from rich.table import Table

from layershuffle.checkpoints.loading import LoadedModel, load
from layershuffle.commands.parser import Parser
from layershuffle.commands.predict import Pictures, find_pictures
from layershuffle.data.folders import describe_left_out
from layershuffle.errors import UserError
from layershuffle.serving.answers import Answers
from layershuffle.serving.cluster import NEEDS_RAY, Cluster
from layershuffle.serving.router import Policy

TOKEN = "LAYERSHUFFLE_TOKEN"
AGAIN = "The same command classifies what is left"


def serve_command(args: list[str] | None = None) -> None:
    """Serve as ``args`` say, by default those of the process, until Ctrl-C or SIGTERM or the end of ``--pictures``."""
    parser = Parser(
        prog="layershuffle serve",
        description="Serve a model whose layers are spread over nodes: processes of this machine, or of a Ray cluster. "
        "Pictures come in over HTTP. Clients need a token, which is made anew unless the environment variable "
        f"{TOKEN} holds it. With --pictures, these are classified instead, and nothing listens for others.",
    )
    parser.add_argument(
        "checkpoint", help="a checkpoint, an exported folder, or the name of a timm model, as for layershuffle predict"
    )
    parser.add_argument(
        "--pictures", nargs="+", default=[], help="files, and folders in which all pictures are classified"
    )
    parser.add_argument(
        "--output",
        type=Path | None,
        help="with --pictures, a file (.jsonl) to which the answers are appended; pictures that it already has are not "
        "classified again",
    )
    parser.add_argument("--top", type=PositiveInt, default=5, help="how many classes to name")
    parser.add_argument("--nodes", type=PositiveInt, default=6, help="how many nodes to start")
    parser.add_argument(
        "--address", type=str | None, help="of a Ray cluster, or auto for the one on this machine (default: a new one)"
    )
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
    if bool(config.pictures) != bool(config.output):
        raise UserError("--pictures names what to classify and --output where to write it: give both, or neither")
    paths, left_out = find_pictures(config.pictures) if config.pictures else ([], [])
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
    if not config.pictures:
        asyncio.run(_serve(cluster, loaded, config))
        return
    for line in describe_left_out(left_out):
        print(line, file=sys.stderr)
    with open_answers(config.output, loaded) as answers:
        left = [path for path in paths if path not in answers.done]
        if left:
            asyncio.run(_answer(cluster, loaded, left, answers, config))
        print(f"{config.output}: {len(answers.done):,} pictures, {answers.unreadable:,} of which can't be read")


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
        application = door(cluster, loaded, token, config.most_waiting, config.top)
        address = await stack.enter_async_context(listening(application, config.host, config.port))
        console.print(f"page: {address}/#{token}", soft_wrap=True)
        call = f"curl -H 'Authorization: Bearer {token}' --data-binary @PICTURE {address}/predict"
        console.print(f"try:  {call}", soft_wrap=True, highlight=False)
        await stack.enter_async_context(_shown(cluster, console))
        await stopped.wait()


async def _answer(cluster: Cluster, loaded: LoadedModel, paths: list[str], answers: Answers, config: Any) -> None:
    console = Console()
    progress = Progress(console=console)
    done = len(answers.done)
    task = progress.add_task("classifying", total=done + len(paths), completed=done)
    async with AsyncExitStack() as stack:
        with console.status(f"starting {config.nodes} nodes"):
            await stack.enter_async_context(cluster)
        await stack.enter_async_context(_shown(cluster, console, progress))
        await answer_pictures(cluster, loaded, paths, answers, config.top, lambda: progress.advance(task))


def open_answers(path: Path, loaded: LoadedModel) -> Answers:
    """The file of a model's answers; what is wrong with it is said in a ``UserError``."""
    try:
        from layershuffle.serving.node import fingerprint
    except ImportError as error:
        raise UserError(NEEDS_RAY) from error
    answers = Answers(path, loaded.record, fingerprint(loaded.model))
    if answers.torn:
        print(f"the last line of {path} was cut off: it is removed, and its picture classified again", file=sys.stderr)
    return answers


async def answer_pictures(
    cluster: Cluster,
    loaded: LoadedModel,
    paths: Sequence[str],
    answers: Answers,
    top: int = 5,
    advance: Callable[[], Any] = lambda: None,
) -> None:
    """Classify pictures over a cluster, twice as many at a time as its window, and append what they show.

    A picture that can't be read is named on stderr and in the file.

    Args:
        cluster: what classifies.
        loaded: the model that it serves.
        paths: the pictures.
        answers: where to append.
        top: how many classes an answer names.
        advance: called after each picture.

    Raises:
        UserError: if requests failed: at the end, or after as many in a row as the window holds. Their pictures have no
            line in the file.
    """
    pictures, left = Pictures(paths, loaded), iter(range(len(paths)))
    failed = in_a_row = 0

    async def work() -> None:
        nonlocal failed, in_a_row
        for index in left:
            path, image = await asyncio.to_thread(pictures.__getitem__, index)
            if isinstance(image, str):
                print(f"{path} can't be read as an image ({image})", file=sys.stderr)
                answers.append({"picture": path, "unreadable": image})
            else:
                try:
                    found = await cluster.submit(image[None])
                except UserError as error:
                    print(f"{path}: {error}", file=sys.stderr)
                    failed, in_a_row = failed + 1, in_a_row + 1
                    if in_a_row >= cluster.window:
                        raise UserError(f"{in_a_row} requests in a row have failed. {AGAIN}") from error
                    continue
                answers.append({"picture": path, **found.described(loaded.classes, top)})
                in_a_row = 0
            advance()

    workers = [asyncio.create_task(work()) for _ in range(2 * cluster.window)]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if failed:
        raise UserError(f"{failed} of {len(paths)} pictures have no answer, since their requests failed. {AGAIN}")


@asynccontextmanager
async def _shown(cluster: Cluster, console: Console, *more: RenderableType) -> AsyncIterator[None]:
    """Show the table and ``more`` meanwhile, anew four times a second, if there is a terminal."""

    async def refresh(live: Live) -> None:
        while True:
            live.update(Group(status(cluster.state()), *more), refresh=True)
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
