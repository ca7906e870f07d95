"""Serves a model from the nodes of a Ray cluster, some of which may be slow, busy or gone."""

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Self, get_args

import numpy as np
import torch
from torch import Tensor

from layershuffle.choices import Accelerator, Wire
from layershuffle.errors import UserError, shown
from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.plurals import counted
from layershuffle.serving.actions import Action, Ended, Load, Run
from layershuffle.serving.checks import check_numbers
from layershuffle.serving.cluster_state import ClusterState, NodeState
from layershuffle.serving.event_log import EventLog
from layershuffle.serving.flight import Flight
from layershuffle.serving.model_parts import check_images, fingerprint, part_for
from layershuffle.serving.placement import checked, gpu_share, spread
from layershuffle.serving.policy import Policy
from layershuffle.serving.ray_connection import connect, ray_reason
from layershuffle.serving.result import Result
from layershuffle.serving.router import Router
from layershuffle.serving.wire import Packed, newest_after, pack

FIRST_ESTIMATE = 0.1
"""The seconds that a node is expected to take for a step before it has run one."""


class Cluster:
    """A model whose layers run on nodes: ``async with Cluster(model, 6) as cluster: await cluster.submit(images)``.

    The coordinator, which is this process, embeds images and classifies tokens. It keeps the state that a step reads
    until the step is answered, so that nothing is lost with a node, and adds what the step changes to the newest state.

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
        counts: how many requests "ended" and "failed", how many layers they "missed", how many "runs" of nodes were
            answered, and how many "bytes" have travelled to nodes and back.

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
        numbers = {"most_running": window, "threads": threads, "start_seconds": start_seconds}
        check_numbers(numbers, whole=("most_running", "threads"), positive=numbers)
        self.placement = spread(placement, steps) if isinstance(placement, int) else checked(placement, steps)
        self.model = model
        self.policy = policy or Policy()
        self.window = window or 2 * len(self.placement)
        self.address = address
        self.event_log_path = event_log
        self.wire = wire
        self.threads = threads
        self.accelerator = accelerator
        self.start_seconds = start_seconds
        self.router = Router(steps, self.policy)
        self.waiting = 0
        self.counts = {"ended": 0, "failed": 0, "missed": 0, "runs": 0, "bytes": 0}

        # By name of a node: the handle of its worker, and the id of its process, while it lives and after.
        self._workers: dict[str, Any] = {}
        self._processes: dict[str, int] = {}
        self._gone: dict[str, int] = {}

        self._numbers = count(1)
        self._flights: dict[int, Flight] = {}
        self._ended_at: deque[float] = deque(maxlen=1000)
        self._tasks: set[asyncio.Task] = set()
        self._timer: asyncio.TimerHandle | None = None

    # --- Begin and end ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(self.window)
        self._log = EventLog(self.event_log_path)
        self._log.write("started", time.time(), steps=len(self.model.order), policy=vars(self.policy), wire=self.wire)
        try:
            self._ray, self._owns_ray = await asyncio.to_thread(connect, self.address, len(self.placement))
        except BaseException:
            self._log.close()
            raise
        try:
            from layershuffle.serving.metrics import Metrics

            self._log.listener = Metrics().count
            await self._start_nodes()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._tasks:
            task.cancel()
        for flight in self._flights.values():
            if not flight.ended.done():
                flight.ended.set_exception(UserError("the cluster has stopped"))
        for worker in self._workers.values():
            self._ray.kill(worker)
        if self._owns_ray:
            await asyncio.to_thread(self._ray.shutdown)
        self._log.close()

    async def _start_nodes(self) -> None:
        from layershuffle.serving.worker import Worker

        self._parts = [part_for(self.model, step) for step in self.model.order]
        self._fingerprints = [fingerprint(part) for part in self._parts]
        self._check_memory()

        # Importing torch takes seconds, so all processes are started before any is waited for.
        gpus = int(self._ray.cluster_resources().get("GPU", 0))
        share = gpu_share(self.accelerator, gpus, len(self.placement))
        start = Worker.options(scheduling_strategy="SPREAD", num_gpus=share).remote  # type: ignore[attr-defined]
        names = [f"node{number}" for number in range(len(self.placement))]
        self._workers = {name: start(self.threads, "cuda" if share else "cpu") for name in names}
        loading = [self._load_parts(self._workers[name], steps) for name, steps in zip(names, self.placement)]
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
            await self.join(name, self._workers[name], steps)

    def _check_memory(self) -> None:
        """Raise a UserError if the nodes would hold more than the cluster has memory for."""
        sizes = [_bytes_of(part) for part in self._parts]
        needed = sum(sizes[index] for steps in self.placement for index in steps)
        available = self._ray.cluster_resources().get("memory", math.inf)
        if needed > available:
            raise UserError(
                f"the nodes hold {needed / 2**30:.1f} GiB of weights, but the cluster has {available / 2**30:.1f} GiB "
                "of memory: start fewer nodes, or let each hold fewer layers"
            )

    async def _load_parts(self, worker: Any, steps: Sequence[int]) -> None:
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
        weights = await worker.weights.remote()
        for index in steps:
            if weights.get(index) != self._fingerprints[index]:
                raise UserError(f"{name} is refused: its weights of step {index} aren't those of the model")
        if name in self._processes:
            self._lose(name)
        self._workers[name] = worker
        self._processes[name] = await worker.process.remote()
        self._gone.pop(name, None)
        self._log.write("joined", time.time(), node=name, steps=[*steps], process=self._processes[name])
        self._perform(self.router.join(name, steps, FIRST_ESTIMATE, self._loop.time()))
        self._in_background(self._watch(name, worker))

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
        check_images(images, self.model)
        async with self._slot_of_window(arrived):
            tokens, context = await asyncio.to_thread(self._embed, images)
            flight = Flight(tokens, context, self._loop.create_future())
            ended = await self._run_layers(flight, arrived)
            logits = await asyncio.to_thread(self._classify, flight)
        if not bool(logits.isfinite().all()):
            raise UserError("the model's answer is no number (NaN): its weights or the images are out of range")
        return Result(logits, ended.order.over(self.model.order), ended.missed, ended.seconds, flight.bytes)

    @asynccontextmanager
    async def _slot_of_window(self, arrived: float | None) -> AsyncIterator[None]:
        due = None
        if arrived is not None and self.policy.answer_by is not None:
            due = arrived + self.policy.answer_by
        self.waiting += 1
        try:
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

    async def _run_layers(self, flight: Flight, arrived: float | None) -> Ended:
        """Run a request through the layers, so that its tokens are those after the last; UserError if it fails."""
        number = next(self._numbers)
        self._flights[number] = flight
        try:
            self._perform(self.router.submit(number, self._loop.time(), arrived))
            ended = await flight.ended
        finally:
            del self._flights[number]
            # Does something only if the caller has gone, whose request then needn't go on.
            self._perform(self.router.cancel(number, self._loop.time()))
        if ended.failed:
            reason = f"was not done within {self.policy.request_deadline:g} s: too few nodes are left, or too slow"
            raise UserError(f"request {number} {flight.error or reason}")
        return ended

    @torch.inference_mode()
    def _embed(self, images: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        tokens, context = self.model.embed(images)
        return tokens.numpy(), None if context is None else context.numpy()

    @torch.inference_mode()
    def _classify(self, flight: Flight) -> Tensor:
        return self.model.classify(State(torch.tensor(flight.tokens))).logits

    # --- What the router wants -------------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        """Do what the router says, and come back when it next has something to do."""
        for action in actions:
            if isinstance(action, Run):
                # It reads the newest state of this moment, and not of the later one in which it is sent.
                read = self._flights[action.request].tokens
                self._in_background(self._run(action, read))
            elif isinstance(action, Load):
                self._in_background(self._load(action))
            else:
                self._end(action)
        if self._timer is not None:
            self._timer.cancel()
        due = self.router.next_time()
        if due < math.inf:
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._perform(self.router.tick(self._loop.time()))

    def _end(self, ended: Ended) -> None:
        flight = self._flights.get(ended.request)
        self._log.ended(ended, time.time(), 0 if flight is None else flight.bytes)
        self.counts["failed" if ended.failed else "ended"] += 1
        self.counts["missed"] += len(ended.missed)
        self._ended_at.append(self._loop.time())
        if flight is not None and not flight.ended.done():
            flight.ended.set_result(ended)

    async def _run(self, run: Run, read: np.ndarray) -> None:
        """Let a node run layers on the state ``read`` of a request, and add its answer if that still counts."""
        name = str(run.node)
        worker = self._workers[name]
        flight = self._flights.get(run.request)
        if flight is None:  # Its caller has gone.
            self._perform(self.router.answered(run, self._loop.time()))
            return
        try:
            answer = await self._send(run, worker, read, flight)
        except self._ray.exceptions.RayActorError as error:
            self._unreachable(name, worker, error)
            return
        except self._ray.exceptions.RayError as error:
            # The node lives but can't run this: another one couldn't either, or it would take all down one by one.
            self._log.write("error", time.time(), node=name, request=run.request, why=ray_reason(error))
            if self.router.is_current(run):
                flight.error = f"could not be run by {name}: {ray_reason(error)}"
                self._perform(self.router.cancel(run.request, self._loop.time()))
        else:
            if self.router.is_current(run):
                flight.tokens = newest_after(answer, read, flight.tokens, self.wire)
            else:
                self._log.write("late", time.time(), node=name, request=run.request)
        self._perform(self.router.answered(run, self._loop.time()))

    async def _send(self, run: Run, worker: Any, read: np.ndarray, flight: Flight) -> Packed:
        """Send a state to a node, and count what travels to it and back."""
        sent = pack(read, self.wire)
        sent_bytes = sent.nbytes + (0 if flight.context is None else flight.context.nbytes)
        self._count_bytes(flight, sent_bytes)
        answer: Packed = await worker.run.remote(sent, flight.context, run.layers, run.position, self.wire)
        self._count_bytes(flight, answer.nbytes)
        self.counts["runs"] += 1
        return answer

    def _count_bytes(self, flight: Flight, number: int) -> None:
        flight.bytes += number
        self.counts["bytes"] += number

    async def _load(self, load: Load) -> None:
        """Let a node load another layer."""
        name = str(load.node)
        worker = self._workers[name]
        try:
            await self._load_parts(worker, [load.layer])
        except self._ray.exceptions.RayActorError as error:
            self._unreachable(name, worker, error)
            return
        except self._ray.exceptions.RayError as error:
            self._log.write("error", time.time(), node=name, why=ray_reason(error))
            self._ray.kill(worker)  # It has too little memory, and what it holds can be loaded elsewhere.
            return
        self._log.write("loaded", time.time(), node=name, step=load.layer)
        self._perform(self.router.answered(load, self._loop.time()))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # The event loop itself would forget a task that nobody holds.
        task.add_done_callback(self._tasks.discard)

    # --- Nodes that go ---------------------------------------------------------------------------------------

    async def _watch(self, name: str, worker: Any) -> None:
        """Notice that a node is gone even while it has nothing to do."""
        try:
            await worker.watch.remote()
        except self._ray.exceptions.RayActorError as error:
            self._unreachable(name, worker, error)

    def _unreachable(self, name: str, worker: Any, error: Exception) -> None:
        if self._workers.get(name) is not worker or name in self._gone:
            return  # It is known already.
        if isinstance(error, self._ray.exceptions.ActorUnavailableError):
            self._log.write("suspected", time.time(), node=name)
            self._perform(self.router.suspect(name, self._loop.time()))
            self._in_background(self._recover(name, worker))
        else:
            self._lose(name)

    async def _recover(self, name: str, worker: Any) -> None:
        """Wait until a node that may live can be reached again, or is known to be gone."""
        while True:
            await asyncio.sleep(0.5)
            try:
                await worker.process.remote()
            except self._ray.exceptions.ActorUnavailableError:
                continue
            except self._ray.exceptions.RayActorError:
                self._lose(name)
                return
            self._perform(self.router.recover(name, self._loop.time()))
            self._in_background(self._watch(name, worker))
            return

    def _lose(self, name: str) -> None:
        self._log.write("lost", time.time(), node=name)
        self._gone[name] = self._processes.pop(name)
        self._perform(self.router.lose(name, self._loop.time()))

    # --- What is known ---------------------------------------------------------------------------------------

    def state(self) -> ClusterState:
        """The nodes and the queue at this moment."""
        nodes = [NodeState.of(node, self._processes.get(str(node.key))) for node in self.router.nodes()]
        nodes += [NodeState.gone(name, process) for name, process in self._gone.items()]
        now = self._loop.time()
        return ClusterState(
            steps=len(self.model.order),
            nodes=nodes,
            in_flight=len(self._flights),
            waiting=self.waiting,
            rate=sum(ended_at > now - 5 for ended_at in self._ended_at) / 5,
            late=self.router.late,
            **self.counts,
        )


def _bytes_of(part: OrderedViT) -> int:
    """The size of its weights."""
    return sum(value.nbytes for value in part.state_dict().values())
