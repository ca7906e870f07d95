"""Serves a model whose layers are spread over nodes: over HTTP, or for a set of pictures."""

import asyncio
import logging
import os
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from layershuffle.api.arguments import check_at_least
from layershuffle.api.pictures import Pictures, Unreadable
from layershuffle.api.study import ModelLike
from layershuffle.checkpoints.loading import LoadedModel, load
from layershuffle.choices import Accelerator, Wire
from layershuffle.data.picture_files import find_pictures
from layershuffle.errors import UserError
from layershuffle.options import TOKEN
from layershuffle.plurals import counted
from layershuffle.serving.answers import Answers
from layershuffle.serving.cluster import Cluster
from layershuffle.serving.model_parts import fingerprint
from layershuffle.serving.policy import Policy

logger = logging.getLogger(__name__)

THE_REST = "The same command classifies what is left"
"""What errors tell users, because the file of answers says which pictures are done."""

Watch = Callable[[Cluster], AbstractAsyncContextManager[Any]]
"""Makes a context in which a cluster is shown while it works."""


@dataclass(frozen=True)
class ClusterOptions:
    """Which nodes serve a model, and how requests are routed.

    Attributes:
        nodes: how many nodes to start.
        policy: how requests are routed.
        most_running: how many requests run at a time; by default 2 per node.
        address: of a Ray cluster, or "auto" for the one on this machine; by default a new one is started.
        wire: in which form tokens travel to nodes and back; see ``serving.wire``.
        threads: the threads of each node.
        accelerator: where nodes compute: "cpu", "gpu", or "auto", on GPUs if the cluster has any.
        start_seconds: how long the nodes may take to start.
        event_log: a file to which events, and the orders that ran, are appended.
    """

    nodes: int = 6
    policy: Policy = field(default_factory=Policy)
    most_running: int | None = None
    address: str | None = None
    wire: Wire = "float32"
    threads: int = 1
    accelerator: Accelerator = "cpu"
    start_seconds: float = 120.0
    event_log: str | Path | None = None

    def cluster(self, model: LoadedModel) -> Cluster:
        """The cluster that serves ``model``, before it has started; raises UserError on Windows."""
        if sys.platform == "win32":
            raise UserError("serving needs Linux or macOS: on Windows, use it in WSL")
        return Cluster(
            model.model,
            self.nodes,
            self.policy,
            window=self.most_running,
            address=self.address,
            event_log=self.event_log,
            wire=self.wire,
            threads=self.threads,
            accelerator=self.accelerator,
            start_seconds=self.start_seconds,
        )


def serve(
    model: ModelLike,
    options: ClusterOptions | None = None,
    *,
    pretrained: str | None = None,
    img_size: int | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    most_waiting: int = 64,
    top: int = 5,
    on_ready: Callable[[str, str], Any] | None = None,
    watch: Watch | None = None,
) -> None:
    """Serve a model over HTTP until this process gets SIGINT or SIGTERM; see ``serving.http_server`` for the requests.

    A program with an event loop of its own uses ``serving.cluster.Cluster``.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        options: the nodes and the routing.
        pretrained: weights of a timm model, as ``layershuffle.load`` takes them.
        img_size: the height and the width of its images in pixels, as ``layershuffle.load`` takes it.
        host: the address to listen on; the default is loopback alone.
        port: the port, or 0 for any that is free.
        token: what a client must know; by default that of the environment variable ``TOKEN``, or else a new one.
        most_waiting: how many requests may wait; others get the status code 429.
        top: how many classes an answer names.
        on_ready: called with the HTTP address and the token when requests are taken.
        watch: in which context to serve.

    Raises:
        UserError: if something is not installed, the nodes don't start, or it can't listen on that host and port.
    """
    try:
        from layershuffle.serving.http_server import HttpServer, check_address, listening
    except ImportError as error:
        raise UserError('serving needs aiohttp: install it with pip install "layershuffle[serving]"') from error

    # Before the model is loaded and the nodes start, which takes long.
    check_at_least(0, most_waiting=most_waiting)
    check_at_least(1, top=top)
    check_address(host, port)
    loaded = _loaded(model, pretrained, img_size)
    cluster = (options or ClusterOptions()).cluster(loaded)
    token = token or os.environ.get(TOKEN) or secrets.token_urlsafe(24)

    async def run() -> None:
        stopped = asyncio.Event()
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(cluster)
            # Instead of ending the process, a signal lets the contexts end the server and then the nodes.
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, stopped.set)
            application = HttpServer(cluster, loaded, token, most_waiting, top).application()
            address = await stack.enter_async_context(listening(application, host, port))
            if on_ready:
                on_ready(address, token)
            await stack.enter_async_context(watch(cluster) if watch else nullcontext())
            await stopped.wait()

    asyncio.run(run())


def classify(
    model: ModelLike,
    pictures: Sequence[str | Path],
    answers: str | Path,
    options: ClusterOptions | None = None,
    *,
    pretrained: str | None = None,
    img_size: int | None = None,
    top: int = 5,
    advance: Callable[[int, int], Any] = lambda done, total: None,
    watch: Watch | None = None,
) -> Answers:
    """Classify pictures over a cluster, and append what they show to a file.

    Pictures that the file already has are not classified again.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        pictures: files, and folders of which all pictures are taken.
        answers: the file (.jsonl).
        options: the nodes and the routing.
        pretrained: weights of a timm model, as ``layershuffle.load`` takes them.
        img_size: the height and the width of its images in pixels, as ``layershuffle.load`` takes it.
        top: how many classes an answer names.
        advance: called with the number of pictures that are done and that of all pictures.
        watch: in which context to classify.

    Returns:
        The file of answers, which is closed.

    Raises:
        UserError: if there is no picture, ``answers`` is of another model or damaged, or requests failed.
    """
    check_at_least(1, top=top)
    paths = find_pictures(pictures)
    loaded = _loaded(model, pretrained, img_size)
    loaded.check_takes_pictures()
    cluster = (options or ClusterOptions()).cluster(loaded)

    async def run(left: Sequence[str]) -> None:
        def one_more() -> None:
            advance(len(file.done), len(paths))

        async with AsyncExitStack() as stack:
            await stack.enter_async_context(cluster)
            # Ray's own handler, which it has now installed, would print what its threads were at.
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, signal.raise_signal, signal.SIGINT)
            await stack.enter_async_context(watch(cluster) if watch else nullcontext())
            await answer_pictures(cluster, loaded, left, file, top, one_more)

    with _open_answers(Path(answers), loaded) as file:
        left = [path for path in paths if path not in file.done]
        if left:
            asyncio.run(run(left))
        return file


def _loaded(model: ModelLike, pretrained: str | None, img_size: int | None) -> LoadedModel:
    """The model, loaded if need be; the other arguments are for a model of timm that is named.

    Raises UserError if its images can show several classes: answers rank the classes of images that show one.
    """
    loaded = model if isinstance(model, LoadedModel) else load(model, pretrained, img_size=img_size)
    if loaded.info.thresholds is not None:
        raise UserError(
            f"{loaded.info.name} was trained with several labels for each image, and serve names one: use predict"
        )
    return loaded


def _open_answers(path: Path, model: LoadedModel) -> Answers:
    """The file of a model's answers."""
    answers = Answers(path, model.info.to_json(), fingerprint(model.model))
    if answers.torn:
        logger.warning("the last line of %s was cut off: it is removed, and its picture classified again", path)
    return answers


async def answer_pictures(
    cluster: Cluster,
    model: LoadedModel,
    paths: Sequence[str],
    answers: Answers,
    top: int = 5,
    advance: Callable[[], Any] = lambda: None,
) -> None:
    """Classify pictures over a cluster, twice as many at a time as its window, and append what they show.

    A picture that can't be read is logged, and named in the file.

    Args:
        cluster: what classifies.
        model: the model that it serves.
        paths: the pictures.
        answers: where to append.
        top: how many classes an answer names.
        advance: called after each picture.

    Raises:
        UserError: if requests failed: at the end, or after as many in a row as the window holds. Their pictures have no
            line in the file.
    """
    failures = _Failures(cluster.window)
    pictures = Pictures(paths, model)
    numbers = iter(range(len(paths)))

    async def work() -> None:
        await _work(cluster, model, pictures, numbers, answers, top, failures, advance)

    # Twice as many as run at a time, so that the next pictures are read meanwhile.
    workers = [asyncio.create_task(work()) for _ in range(2 * cluster.window)]
    try:
        await asyncio.gather(*workers)
    finally:
        # An error ends ``gather`` but not the other tasks, which would go on sending requests.
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if failures.total:
        raise UserError(
            f"requests failed, so {failures.total} of {counted(len(paths), 'picture')} got no answer. {THE_REST}"
        )


async def _work(
    cluster: Cluster,
    model: LoadedModel,
    pictures: Pictures,
    numbers: Iterator[int],
    answers: Answers,
    top: int,
    failures: "_Failures",
    advance: Callable[[], Any],
) -> None:
    """Classify one picture after the other, until there is none left; several such tasks share ``numbers``."""
    for number in numbers:
        # Decoding takes long, and the cluster's messages must not wait for it.
        picture = await asyncio.to_thread(pictures.__getitem__, number)
        if isinstance(picture, Unreadable):
            logger.warning("%s", picture)
            answers.append({"picture": picture.path, "unreadable": picture.reason})
            advance()
            continue

        path, pixels = picture
        try:
            result = await cluster.submit(pixels[None])
        except UserError as error:
            # Without a line in the file, the same command classifies this picture again.
            logger.warning("%s: %s", path, error)
            failures.add(error)
            continue
        failures.in_a_row = 0
        answers.append({"picture": path, **result.to_json(model.classes, top)})
        advance()


class _Failures:
    """Counts the requests that fail, and gives up after too many in a row.

    Args:
        most: how many must fail in a row for it to give up.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.total = 0
        self.in_a_row = 0

    def add(self, error: UserError) -> None:
        """Count a request that failed with ``error``; raise a UserError if ``most`` have failed in a row."""
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= self.most:
            raise UserError(f"{counted(self.in_a_row, 'request')} in a row failed. {THE_REST}") from error
