"""Serves a model from the nodes of a Ray cluster, some of which may be slow, busy or gone."""

import asyncio
import math
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, get_args

import numpy as np
import torch
from torch import Tensor

from layershuffle.choices import Accelerator, Wire
from layershuffle.errors import UserError, shown
from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.plurals import counted
from layershuffle.serving.checks import check_numbers
from layershuffle.serving.cluster_state import ClusterState
from layershuffle.serving.dispatcher import Dispatcher
from layershuffle.serving.event_log import EventLog
from layershuffle.serving.flight import Flight
from layershuffle.serving.model_parts import check_images, fingerprint, part_for
from layershuffle.serving.placement import checked, gpu_share, spread
from layershuffle.serving.policy import Policy
from layershuffle.serving.ray_connection import connect, ray_reason
from layershuffle.serving.result import Result
from layershuffle.serving.router import Router


class Cluster:
    """A model whose layers run on nodes: ``async with Cluster(model, 6) as cluster: await cluster.submit(images)``.

    The coordinator, which is this process, embeds images and classifies tokens. It keeps the state that a step reads
    until the step is answered, so that nothing is lost with a node, and adds what the step changes to the newest state;
    ``serving.dispatcher`` does that.

    Args:
        model: the model, in evaluation mode on the CPU.
        placement: for each node, the steps of the model's base order that it holds, by index; or the number of nodes,
            which then hold successive steps, each at least one.
        policy: how requests are routed.
        window: how many requests may run at a time; others wait in ``submit``. By default twice the number of nodes.
        address: of a Ray cluster that runs, where this package is installed, or "auto" for the one that was started on
            this machine; by default a new one is started on this machine, which listens on loopback alone.
        event_log: a file to which events are appended, among them the order of each request; see ``EventLog``.
        wire: in which form tokens travel to nodes and back; see ``serving.wire``.
        threads: how many threads each node computes with.
        accelerator: where nodes compute: "cpu"; "gpu", which several of them may share; or "auto", on GPUs if the
            cluster has any.
        start_seconds: how long the nodes may take to start.

    Attributes:
        router: decides which node runs what.
        waiting: how many calls of ``submit`` wait for the window.
        dispatcher: has the nodes and the requests that run, while the cluster does.

    Raises:
        UserError: if the model's base order reads older states, a step has no node, or a number or a word can't be; on
            entering, if there is no such cluster, or the model is too large for it.
    """

    def __init__(
        self,
        model: OrderedViT,
        placement: int | Sequence[Sequence[int]],
        policy: Policy | None = None,
        *,
        window: int | None = None,
        address: str | None = None,
        event_log: str | os.PathLike | None = None,
        wire: Wire = "float32",
        threads: int = 1,
        accelerator: Accelerator = "cpu",
        start_seconds: float = 120.0,
    ) -> None:
        steps = len(model.order)
        if model.order.longest_lag:
            raise UserError(
                f"the model's base order, {model.order}, reads older states, which nodes that run its steps in another "
                "sequence don't have: serve a model whose steps read the newest one"
            )
        if wire not in get_args(Wire):
            raise UserError(f"wire is one of {', '.join(get_args(Wire))}, not {shown(wire)}")
        if accelerator not in get_args(Accelerator):
            raise UserError(f"nodes compute on {', '.join(get_args(Accelerator))}, not {shown(accelerator)}")
        # Errors name the options of `layershuffle serve`, of which most users know these numbers.
        numbers = {"most_running": window, "threads": threads, "start_seconds": start_seconds}
        check_numbers(numbers, whole=("most_running", "threads"), positive=numbers)
        self.placement = spread(placement, steps) if isinstance(placement, int) else checked(placement, steps)
        self.model = model
        self.policy = policy or Policy()
        # With one request for each node, a node whose layers have all been run by those in flight would be idle.
        self.window = window or 2 * len(self.placement)
        self.address = address
        self.event_log_path = event_log
        self.wire = wire
        self.threads = threads
        self.accelerator = accelerator
        self.start_seconds = start_seconds
        self.router = Router(steps, self.policy)
        self.waiting = 0

    # --- Begin and end ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._slots = asyncio.Semaphore(self.window)
        self._log = EventLog(self.event_log_path)
        self._log.write("started", time.time(), steps=len(self.model.order), policy=vars(self.policy), wire=self.wire)
        try:
            # Connecting takes seconds, in which the event loop of the program must go on.
            self._ray, self._owns_ray = await asyncio.to_thread(connect, self.address, len(self.placement))
        except BaseException:
            self._log.close()
            raise
        self.dispatcher = Dispatcher(self.router, self._ray, self._log, self.wire, self._load_parts)
        try:
            # It imports Ray, and only now is it known that Ray is installed.
            from layershuffle.serving.metrics import Metrics

            self._log.listener = Metrics().count
            await self._start_nodes()
        except BaseException:
            # Python calls it by itself only once the context has been entered.
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.dispatcher.close()
        if self._owns_ray:
            await asyncio.to_thread(self._ray.shutdown)
        self._log.close()

    async def _start_nodes(self) -> None:
        """Start a process for each node, let it load its steps, and let it take part."""
        from layershuffle.serving.worker import Worker

        # A part for each step and not for each node, since a node that goes leaves its steps to any other one.
        self._parts = [part_for(self.model, step) for step in self.model.order]
        self._fingerprints = [fingerprint(part) for part in self._parts]
        self._check_memory()

        # Nodes share the GPUs, if they compute on any.
        gpus = int(self._ray.cluster_resources().get("GPU", 0))
        share = gpu_share(self.accelerator, gpus, len(self.placement))
        device = "cuda" if share else "cpu"

        # Importing torch takes seconds, so all processes are started before any is waited for.
        start = Worker.options(scheduling_strategy="SPREAD", num_gpus=share).remote  # type: ignore[attr-defined]
        names = [f"node{number}" for number in range(len(self.placement))]
        workers = {name: start(self.threads, device) for name in names}
        # The dispatcher kills them at the end, also if they never join.
        self.dispatcher.workers.update(workers)
        loading = [self._load_parts(workers[name], steps) for name, steps in zip(names, self.placement)]
        try:
            await asyncio.wait_for(asyncio.gather(*loading), self.start_seconds)
        except TimeoutError as error:
            raise UserError(
                f"the {counted(len(names), 'node')} didn't start within {self.start_seconds:.0f} s: the cluster must "
                "have a free CPU for each"
            ) from error
        except self._ray.exceptions.RayError as error:
            raise UserError(f"a node could not load its layers: {ray_reason(error)}") from error
        for name, steps in zip(names, self.placement):
            # One after the other, so that their numbers in the router don't depend on which was the quickest.
            await self.join(name, workers[name], steps)

    def _check_memory(self) -> None:
        """Raise a UserError if the nodes would hold more than the cluster has memory for.

        Otherwise the system would kill some process of the machine, perhaps another user's, when memory runs out.
        """
        sizes = [_bytes_of(part) for part in self._parts]
        needed = 0
        for steps in self.placement:
            needed += sum(sizes[index] for index in steps)
        available = self._ray.cluster_resources().get("memory", math.inf)
        if needed > available:
            raise UserError(
                f"the nodes hold {needed / 2**30:.1f} GiB of weights, but the cluster has {available / 2**30:.1f} GiB "
                "of memory: start fewer nodes, or let each hold fewer layers"
            )

    async def _load_parts(self, worker: Any, steps: Sequence[int]) -> None:
        """Send a worker the parts of the model that run these steps."""
        for index in steps:
            await worker.hold.remote(index, self._parts[index], self.model.order[index])

    async def join(self, name: str, worker: Any, steps: Sequence[int]) -> None:
        """Let a node take part that holds these steps. One that has joined before under this name is replaced.

        Args:
            name: what the node is called.
            worker: the handle of its ``serving.worker.Worker``.
            steps: the steps that it holds.

        Raises:
            UserError: if its weights aren't those of the model.
        """
        # A node of other weights, such as those of an earlier training, would give wrong answers that look right.
        weights = await worker.weights.remote()
        for index in steps:
            if weights.get(index) != self._fingerprints[index]:
                raise UserError(f"{name} is refused: its weights of step {index} aren't those of the model")
        await self.dispatcher.join(name, worker, steps)

    # --- Requests --------------------------------------------------------------------------------------------

    async def submit(self, images: Tensor, arrived: float | None = None) -> Result:
        """Classify normalised ``images`` [batch, channels, height, width]; waits while the window is full.

        Args:
            images: the images.
            arrived: since when, in the event loop's time, the caller waits for an answer that is due by
                ``Policy.answer_by``; by default since the request begins to run.

        Raises:
            UserError: if the images aren't what the model takes, or the request reached its deadline, or it should have
                been answered before it could begin.
        """
        # Before it waits, so that a mistake is known at once and takes no place in the window.
        check_images(images, self.model)
        async with self._slot_of_window(arrived):
            # In threads, because answers of nodes would wait in the event loop meanwhile.
            tokens, context = await asyncio.to_thread(self._embed, images)
            flight = Flight(tokens, context, asyncio.get_running_loop().create_future())
            ended = await self.dispatcher.run_layers(flight, arrived)
            logits = await asyncio.to_thread(self._classify, flight)
        if not bool(logits.isfinite().all()):
            raise UserError("the model's answer is no number (NaN): its weights or the images are out of range")
        return Result(logits, ended.order.over(self.model.order), ended.missed, ended.seconds, flight.bytes)

    @asynccontextmanager
    async def _slot_of_window(self, arrived: float | None) -> AsyncIterator[None]:
        """Wait until a request may run, and let it count as running in this context."""
        due = None
        if arrived is not None and self.policy.answer_by is not None:
            due = arrived + self.policy.answer_by
        self.waiting += 1
        try:
            # Who has waited until the answer was due gets an error, and not an answer that misses every layer.
            async with asyncio.timeout_at(due):
                await self._slots.acquire()
        except TimeoutError as error:
            raise UserError(
                f"the request could not begin within {self.policy.answer_by:g} s, because {self.window} others ran"
            ) from error
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._slots.release()

    @torch.inference_mode()
    def _embed(self, images: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        tokens, context = self.model.embed(images)
        if context is None:
            return tokens.numpy(), None
        return tokens.numpy(), context.numpy()

    @torch.inference_mode()
    def _classify(self, flight: Flight) -> Tensor:
        return self.model.classify(State(torch.tensor(flight.tokens))).logits

    # --- What is known ---------------------------------------------------------------------------------------

    def state(self) -> ClusterState:
        """The nodes and the queue at this moment."""
        counts = self.dispatcher.counts
        return ClusterState(
            steps=len(self.model.order),
            nodes=self.dispatcher.node_states(),
            in_flight=len(self.dispatcher.flights),
            waiting=self.waiting,
            rate=self.dispatcher.rate(),
            late=self.router.late,
            ended=counts.ended,
            failed=counts.failed,
            missed=counts.missed,
            runs=counts.runs,
            bytes=counts.bytes,
        )


def _bytes_of(part: OrderedViT) -> int:
    """The size of its weights."""
    return sum(value.nbytes for value in part.state_dict().values())
