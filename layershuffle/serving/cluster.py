"""Serves a model from the nodes of a Ray cluster, some of which may be slow, busy or gone."""

import asyncio
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from layershuffle.checkpoints.likely_classes import likely_classes
from layershuffle.errors import UserError
from layershuffle.models.backbones import State
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order
from layershuffle.serving.events import EventLog
from layershuffle.serving.router import Action, Ended, Load, Policy, Router, Run

NEEDS_RAY = 'serving needs Ray: install it with pip install "layershuffle[serving]"'
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 200,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
"""With Ray's defaults it takes 15 s until a machine that has gone is noticed."""


class Result(NamedTuple):
    """What a request gets back.

    Attributes:
        logits: [batch, classes].
        order: the order that ran.
        missed: the steps of the model's base order that were missed, by their indices.
        seconds: from the time when the request was routed until its last layer was done.
    """

    logits: Tensor
    order: Order
    missed: tuple[int, ...]
    seconds: float

    def described(self, classes: Sequence[str], top: int) -> dict[str, Any]:
        """What the first image shows: the ``top`` likeliest of ``classes``, and how they came about, for JSON."""
        likeliest = [
            {"class": likely.name, "probability": round(likely.probability, 6)}
            for likely in likely_classes(self.logits[:1], classes, top)
        ]
        seconds, missed = round(self.seconds, 4), [*self.missed]
        return {"classes": likeliest, "order": str(self.order), "missed": missed, "seconds": seconds}


@dataclass
class _Flight:
    """A request that runs: its current tokens [batch, tokens, dim], and who waits for its end."""

    tokens: np.ndarray
    context: np.ndarray | None
    ended: asyncio.Future
    error: str = ""


class Cluster:
    """A model whose layers run on nodes: ``async with Cluster(model, 6) as cluster: await cluster.submit(images)``.

    The coordinator, which is this process, embeds images and classifies tokens. It keeps the input of every step until
    the step is answered, so that nothing is lost with a node. Nodes compute on the CPU.

    Args:
        model: the model, in evaluation mode on the CPU.
        placement: for each node, the steps of the model's base order that it holds, by index; or the number of nodes,
            which then hold successive steps, each at least one.
        policy: how requests are routed.
        window: how many requests may run at a time; others wait in ``submit``. By default twice the number of nodes.
        address: of a Ray cluster that runs, where this package is installed, or "auto" for the one that was started on
            this machine; by default a new one is started on this machine, which listens on loopback alone.
        log: a file to which events are appended, among them the order of each request; see ``EventLog``.
        threads: how many threads each node computes with.
        start_seconds: how long the nodes may take to start.

    Raises:
        UserError: on entering, if there is no such cluster, the model is too large for it, or a step has no node.
    """

    def __init__(
        self,
        model: OrderedViT,
        placement: int | Sequence[Sequence[int]],
        policy: Policy | None = None,
        *,
        window: int | None = None,
        address: str | None = None,
        log: str | os.PathLike | None = None,
        threads: int = 1,
        start_seconds: float = 120.0,
    ) -> None:
        steps = len(model.order)
        self.placement = spread(placement, steps) if isinstance(placement, int) else [[*held] for held in placement]
        if missing := set(range(steps)) - {index for held in self.placement for index in held}:
            raise UserError(f"no node holds step {min(missing)} of the model's {steps}: give each step to a node")
        if wrong := {index for held in self.placement for index in held} - set(range(steps)):
            raise UserError(f"a node holds step {max(wrong)}, but the model has only steps 0 to {steps - 1}")
        self.model, self.address, self.log_path = model, address, log
        self.policy, self.threads, self.start_seconds = policy or Policy(), threads, start_seconds
        self.window = window or 2 * len(self.placement)
        self.router = Router(steps, self.policy)
        self.waiting = 0
        """How many calls of ``submit`` wait for the window."""
        self.counts = {"ended": 0, "failed": 0, "missed": 0}
        self._processes: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._recent: deque[float] = deque(maxlen=1000)  # when requests ended
        self._actors: dict[str, Any] = {}
        self._flights: dict[int, _Flight] = {}
        self._tasks: set[asyncio.Task] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._numbers = count(1)

    # --- Begin and end ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(self.window)
        self._log = EventLog(self.log_path)
        self._log.write("started", time.time(), steps=len(self.model.order), policy=vars(self.policy))
        self._ray, self._owns_ray = await asyncio.to_thread(connect, self.address, len(self.placement))
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
        for actor in self._actors.values():
            self._ray.kill(actor)
        if self._owns_ray:
            await asyncio.to_thread(self._ray.shutdown)
        self._log.close()

    async def _start_nodes(self) -> None:
        from layershuffle.serving.node import Node, fingerprint, part

        self._parts = [part(self.model, step) for step in self.model.order]
        self._fingerprints = [fingerprint(held) for held in self._parts]
        sizes = [sum(value.nbytes for value in held.state_dict().values()) for held in self._parts]
        needed = sum(sizes[index] for held in self.placement for index in held)
        if needed > (room := self._ray.cluster_resources().get("memory", float("inf"))):
            raise UserError(
                f"the nodes hold {needed / 2**30:.1f} GiB of weights, but the cluster has {room / 2**30:.1f} GiB of "
                "memory: start fewer nodes, or let each hold fewer layers"
            )
        # Importing torch takes seconds, so all processes are started before any is waited for.
        start = Node.options(scheduling_strategy="SPREAD").remote  # type: ignore[attr-defined]
        actors = [start(self.threads) for _ in self.placement]
        self._actors = {f"node{at}": actor for at, actor in enumerate(actors)}
        joining = asyncio.gather(*(self._set_up(*each) for each in zip(self._actors, actors, self.placement)))
        try:
            await asyncio.wait_for(joining, self.start_seconds)
        except TimeoutError as error:
            raise UserError(
                f"the {len(actors)} nodes didn't start within {self.start_seconds:.0f} s: the cluster must have a free "
                "CPU for each"
            ) from error
        except self._ray.exceptions.RayError as error:
            raise UserError(f"a node could not load its layers: {_reason(error)}") from error
        for (name, actor), held in zip(self._actors.items(), self.placement):
            await self.join(name, actor, held)

    async def _set_up(self, name: str, actor: Any, held: Sequence[int]) -> None:
        for index in held:
            await actor.hold.remote(index, self._parts[index], self.model.order[index])

    async def join(self, name: str, actor: Any, held: Sequence[int]) -> None:
        """Let a node take part that holds these steps. One that has joined before under this name is replaced.

        Args:
            name: what the node is called.
            actor: a handle of a ``serving.node.Node``.
            held: the steps that it holds.

        Raises:
            UserError: if its weights aren't those of the model.
        """
        found = await actor.weights.remote()
        if wrong := [index for index in held if found.get(index) != self._fingerprints[index]]:
            raise UserError(f"{name} is refused: its weights of step {wrong[0]} aren't those of the model")
        if name in self._processes:
            self._lose(name)
        self._actors[name] = actor
        self._processes[name] = await actor.process.remote()
        self._gone.pop(name, None)
        self._log.write("joined", time.time(), node=name, steps=[*held], process=self._processes[name])
        self._perform(self.router.join(name, held, 0.1, self._loop.time()))
        self._in_background(self._watch(name, actor))

    # --- Requests --------------------------------------------------------------------------------------------

    async def submit(self, images: Tensor) -> Result:
        """Classify normalised ``images`` [batch, channels, height, width]; waits while the window is full.

        Raises:
            UserError: if the images aren't what the model takes, or the request reached its deadline.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.model.image_shape or not len(images):
            wanted = ", ".join(map(str, self.model.image_shape))
            raise UserError(f"the images are {list(images.shape)}, but the model takes [1 or more, {wanted}]")
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        try:
            tokens, context = await asyncio.to_thread(self._embed, images)
            number = next(self._numbers)
            flight = self._flights[number] = _Flight(tokens, context, self._loop.create_future())
            try:
                self._perform(self.router.submit(number, self._loop.time()))
                ended: Ended = await flight.ended
            finally:
                del self._flights[number]
                # Does something only if the caller has gone, whose request then needn't go on.
                self._perform(self.router.cancel(number, self._loop.time()))
            if ended.failed:
                reason = f"was not done within {self.policy.request_deadline:g} s: too few nodes are left, or too slow"
                raise UserError(f"request {number} {flight.error or reason}")
            logits = await asyncio.to_thread(self._classify, flight)
            return Result(logits, Order(ended.order).over(self.model.order), ended.missed, ended.seconds)
        finally:
            self._slots.release()

    @torch.inference_mode()
    def _embed(self, images: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        tokens, context = self.model.embed(images)
        return tokens.numpy(), None if context is None else context.numpy()

    @torch.inference_mode()
    def _classify(self, flight: _Flight) -> Tensor:
        return self.model.classify(State(torch.tensor(flight.tokens)), []).logits

    # --- Nodes -----------------------------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        """Do what the router says, and come back when it next has something to do."""
        for action in actions:
            if isinstance(action, Run):
                self._in_background(self._step(action))
            elif isinstance(action, Load):
                self._in_background(self._load(action))
            else:
                self._end(action)
        if self._timer is not None:
            self._timer.cancel()
        if (due := self.router.next_time()) < float("inf"):
            self._timer = self._loop.call_at(due, lambda: self._perform(self.router.tick(self._loop.time())))

    def _end(self, ended: Ended) -> None:
        self._log.ended(ended, time.time())
        self.counts["failed" if ended.failed else "ended"] += 1
        self.counts["missed"] += len(ended.missed)
        self._recent.append(self._loop.time())
        flight = self._flights.get(ended.request)
        if flight is not None and not flight.ended.done():
            flight.ended.set_result(ended)

    async def _step(self, run: Run) -> None:
        name, flight = str(run.node), self._flights.get(run.request)
        actor, errors = self._actors[name], self._ray.exceptions
        if flight is None:  # Its caller has gone.
            self._perform(self.router.answered(run, self._loop.time()))
            return
        try:
            tokens = await actor.run.remote(flight.tokens, flight.context, run.layers, run.position)
        except errors.RayActorError as error:
            self._unreachable(name, actor, error)
            return
        except errors.RayError as error:
            # The node lives but can't run this: another one couldn't either, or it would take all down one by one.
            self._log.write("error", time.time(), node=name, request=run.request, why=_reason(error))
            if self.router.is_current(run):
                flight.error = f"could not be run by {name}: {_reason(error)}"
                self._perform(self.router.cancel(run.request, self._loop.time()))
        else:
            if self.router.is_current(run):
                flight.tokens = tokens
            else:
                self._log.write("late", time.time(), node=name, request=run.request)
        self._perform(self.router.answered(run, self._loop.time()))

    async def _load(self, load: Load) -> None:
        name, actor = str(load.node), self._actors[str(load.node)]
        try:
            await actor.hold.remote(load.layer, self._parts[load.layer], self.model.order[load.layer])
        except self._ray.exceptions.RayActorError as error:
            self._unreachable(name, actor, error)
            return
        except self._ray.exceptions.RayError as error:
            self._log.write("error", time.time(), node=name, why=_reason(error))
            self._ray.kill(actor)  # It has too little memory, and what it holds can be loaded elsewhere.
            return
        self._log.write("loaded", time.time(), node=name, step=load.layer)
        self._perform(self.router.answered(load, self._loop.time()))

    async def _watch(self, name: str, actor: Any) -> None:
        """Notice that a node is gone even while it has nothing to do."""
        try:
            await actor.watch.remote()
        except self._ray.exceptions.RayActorError as error:
            self._unreachable(name, actor, error)

    def _unreachable(self, name: str, actor: Any, error: Exception) -> None:
        if self._actors.get(name) is not actor or name in self._gone:
            return  # It is known already.
        if isinstance(error, self._ray.exceptions.ActorUnavailableError):
            self._log.write("suspected", time.time(), node=name)
            self._perform(self.router.suspect(name, self._loop.time()))
            self._in_background(self._recover(name, actor))
        else:
            self._lose(name)

    async def _recover(self, name: str, actor: Any) -> None:
        """Wait until a node that may live can be reached again, or is known to be gone."""
        while True:
            await asyncio.sleep(0.5)
            try:
                await actor.process.remote()
            except self._ray.exceptions.ActorUnavailableError:
                continue
            except self._ray.exceptions.RayActorError:
                self._lose(name)
                return
            self._perform(self.router.recover(name, self._loop.time()))
            self._in_background(self._watch(name, actor))
            return

    def _lose(self, name: str) -> None:
        self._log.write("lost", time.time(), node=name)
        self._gone[name] = self._processes.pop(name)
        self._perform(self.router.lose(name, self._loop.time()))

    def _in_background(self, work: Any) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # The event loop itself would forget a task that nobody holds.
        task.add_done_callback(self._tasks.discard)

    # --- What is known ---------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """The nodes and the queue at this moment, as plain values."""
        nodes: list[dict[str, Any]] = []
        for found in self.router.nodes():
            runs = [*found.task.layers] if isinstance(found.task, Run) else []
            status = "suspected" if found.suspected else "busy" if found.task else "idle"
            about = {"node": found.node, "process": self._processes.get(str(found.node)), "status": status}
            nodes.append({**about, "steps": [*found.layers], "runs": runs, "seconds": round(found.estimate, 4)})
        nodes += [
            {"node": name, "process": process, "status": "gone", "steps": [], "runs": [], "seconds": None}
            for name, process in self._gone.items()
        ]
        now = self._loop.time()
        rate = sum(ended > now - 5 for ended in self._recent) / 5
        return {
            "steps": len(self.model.order),
            "nodes": nodes,
            "in_flight": len(self._flights),
            "waiting": self.waiting,
            "rate": rate,
            "late": self.router.late,
            **self.counts,
        }


def spread(nodes: int, steps: int) -> list[list[int]]:
    """For each of ``nodes`` nodes the successive steps that it holds, so that each step has one node or more.

    Raises:
        UserError: if there is no node.
    """
    if nodes < 1:
        raise UserError("a cluster needs 1 node or more")
    each = -(-steps // nodes)
    return [sorted((at * each + i) % steps for i in range(each)) for at in range(nodes)]


def connect(address: str | None, cpus: int) -> tuple[Any, bool]:
    """The module ray, connected, and whether this process has started it.

    Raises:
        UserError: if ray isn't installed, or there is no cluster at ``address``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns of what it will change some day
    try:
        import ray
        import ray._private.services as services
    except ImportError as error:
        raise UserError(NEEDS_RAY) from error
    if ray.is_initialized():
        return ray, False
    if address is None:
        arguments: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        arguments |= {"_node_ip_address": "127.0.0.1", "_system_config": HEALTH_CHECKS}
    else:
        arguments = {"address": address}
    # Ray replaces the loopback address by one that other machines can reach. A cluster that it starts would listen
    # there, and one that listens on loopback would be looked for there, for ever. The only public way to prevent this
    # is the environment variable RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0, which comes too late if the program has imported
    # ray already. With 127.0.0.2, which Ray doesn't replace, it would listen on all interfaces.
    resolve, services.resolve_ip_for_localhost = services.resolve_ip_for_localhost, lambda host: host
    try:
        host, _, port = (address or "").rpartition(":")
        if port.isdigit():  # Ray itself would try for minutes.
            socket.create_connection((host, int(port)), 5).close()
        ray.init(**arguments, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, ValueError, RuntimeError) as error:
        if address is None:
            raise
        reason = f"{_reason(error)} (if it wants a token, set the environment variable RAY_AUTH_MODE=token)"
        raise UserError(f"there is no Ray cluster at {address}: {reason}") from error
    finally:
        services.resolve_ip_for_localhost = resolve
    return ray, True


def _reason(error: Exception) -> str:
    """The last line of an error that says something; Ray's begin with a traceback."""
    lines = [line.strip() for line in str(getattr(error, "cause", None) or error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[-1]
