"""Does what the router decides: sends states to the nodes, adds what they answer, and notices nodes that go."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from layershuffle.choices import Wire
from layershuffle.errors import UserError
from layershuffle.serving.actions import Action, Ended, Load, Run
from layershuffle.serving.cluster_state import NodeState
from layershuffle.serving.event_log import EventLog
from layershuffle.serving.flight import Flight
from layershuffle.serving.ray_connection import ray_reason
from layershuffle.serving.router import Router
from layershuffle.serving.wire import Packed, newest_after, pack

FIRST_ESTIMATE = 0.1
"""The seconds that a node is expected to take for a step before it has run one."""
RATE_SECONDS = 5
"""Over how many seconds the rate of requests is averaged."""


@dataclass
class Counts:
    """What has happened on a cluster.

    Attributes:
        ended: how many requests were answered.
        failed: how many failed.
        missed: how many layers all of them did without.
        runs: how many runs of nodes were answered.
        bytes: how many bytes have travelled to nodes and back.
    """

    ended: int = 0
    failed: int = 0
    missed: int = 0
    runs: int = 0
    bytes: int = 0


class Dispatcher:
    """Drives a router in an event loop, and does on the nodes what it says.

    All runs in one thread, so that nothing is locked: the router and the flights change only between two ``await``, and
    always together. Whatever happens, a request that comes or ends, an answer, a node that comes or goes, or a time
    that was due, is told to the router, and ``_perform`` does what the router returns. After each ``await`` the world
    may be another one: the request may have ended, and the node may have gone or been replaced under the same name.

    Args:
        router: decides which node runs what.
        ray: the module of Ray, connected.
        log: the log of what happens.
        wire: in which form tokens travel to nodes and back.
        load_steps: lets the worker of a node load these steps.

    Attributes:
        workers: the handle of each node's ``serving.worker.Worker``, by the node's name.
        processes: the ids of the processes of the nodes that live, by name.
        gone: the ids of those of the nodes that have gone, by name.
        flights: the requests that run, by number.
        counts: what has happened until now.
    """

    def __init__(
        self,
        router: Router,
        ray: Any,
        log: EventLog,
        wire: Wire,
        load_steps: Callable[[Any, Sequence[int]], Awaitable[None]],
    ) -> None:
        self.router = router
        self.ray = ray
        self.log = log
        self.wire = wire
        self.load_steps = load_steps
        self.workers: dict[str, Any] = {}
        self.processes: dict[str, int] = {}
        self.gone: dict[str, int] = {}
        self.flights: dict[int, Flight] = {}
        self.counts = Counts()

        self._loop = asyncio.get_running_loop()
        self._numbers = count(1)
        self._ended_at: deque[float] = deque(maxlen=1000)
        self._tasks: set[asyncio.Task] = set()
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Stop all work, fail the requests that run, and kill the workers."""
        if self._timer is not None:
            self._timer.cancel()
        # Tasks first: one that noticed the dying worker below would tell the router, which would tell others to begin.
        for task in self._tasks:
            task.cancel()
        # Who waits for a request would otherwise wait for ever, since nobody is left to end it.
        for flight in self.flights.values():
            if not flight.ended.done():
                flight.ended.set_exception(UserError("the cluster has stopped"))
        for worker in self.workers.values():
            self.ray.kill(worker)

    # --- Requests --------------------------------------------------------------------------------------------

    async def run_layers(self, flight: Flight, arrived: float | None) -> Ended:
        """Run a request through the layers, so that its tokens are those after the last.

        Args:
            flight: the request.
            arrived: see ``Router.submit``.

        Raises:
            UserError: if it fails.
        """
        number = next(self._numbers)
        self.flights[number] = flight
        try:
            self._perform(self.router.submit(number, self._loop.time(), arrived))
            ended = await flight.ended
        finally:
            del self.flights[number]
            # Does something only if the caller has gone, whose request then needn't go on.
            self._perform(self.router.cancel(number, self._loop.time()))
        if ended.failed:
            deadline = self.router.policy.request_deadline
            reason = f"was not done within {deadline:g} s: too few nodes are left, or too slow"
            raise UserError(f"request {number} {flight.error or reason}")
        return ended

    def rate(self) -> float:
        """How many requests ended in a second, over the last ``RATE_SECONDS``."""
        since = self._loop.time() - RATE_SECONDS
        ended = sum(1 for ended_at in self._ended_at if ended_at > since)
        return ended / RATE_SECONDS

    # --- What the router wants -------------------------------------------------------------------------------

    def _perform(self, actions: list[Action]) -> None:
        """Do what the router says, and come back when it next has something to do."""
        for action in actions:
            if isinstance(action, Run):
                # It reads the newest state of this moment, and not of the later one in which it is sent: the router has
                # counted the results until now, and the order that it records says so.
                read = self.flights[action.request].tokens
                self._in_background(self._run(action, read))
            elif isinstance(action, Load):
                self._in_background(self._load(action))
            else:
                self._end(action)
        # Every event comes through here, so that a single timer is enough: it is always set to what is due next.
        if self._timer is not None:
            self._timer.cancel()
        due = self.router.next_time()
        if due < math.inf:
            self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        """Tell the router that the time has come that it waited for."""
        self._perform(self.router.tick(self._loop.time()))

    def _end(self, ended: Ended) -> None:
        """Count a request that has ended, and wake up who waits for it."""
        # It has no flight any more if its caller has gone, whose going cancelled it.
        flight = self.flights.get(ended.request)
        self.log.ended(ended, time.time(), 0 if flight is None else flight.bytes)
        if ended.failed:
            self.counts.failed += 1
        else:
            self.counts.ended += 1
        self.counts.missed += len(ended.missed)
        self._ended_at.append(self._loop.time())
        if flight is not None and not flight.ended.done():
            flight.ended.set_result(ended)

    async def _run(self, run: Run, read: np.ndarray) -> None:
        """Let a node run layers on the state ``read`` of a request, and add its answer if that still counts."""
        # The handle of now: another node may join under this name while this one computes.
        name = str(run.node)
        worker = self.workers[name]
        flight = self.flights.get(run.request)
        if flight is None:  # Its caller has gone.
            self._perform(self.router.answered(run, self._loop.time()))
            return
        try:
            answer = await self._send(run, worker, read, flight)
        except self.ray.exceptions.RayActorError as error:
            self._unreachable(name, worker, error)
            return
        except self.ray.exceptions.RayError as error:
            # The node lives but can't run this: another one couldn't either, or it would take all down one by one.
            self.log.write("error", time.time(), node=name, request=run.request, why=ray_reason(error))
            if self.router.is_current(run):
                flight.error = f"could not be run by {name}: {ray_reason(error)}"
                self._perform(self.router.cancel(run.request, self._loop.time()))
        else:
            # The router may have let others run these layers in the meantime. Then they must not be added twice.
            if self.router.is_current(run):
                flight.tokens = newest_after(answer, read, flight.tokens, self.wire)
            else:
                self.log.write("late", time.time(), node=name, request=run.request)
        self._perform(self.router.answered(run, self._loop.time()))

    async def _send(self, run: Run, worker: Any, read: np.ndarray, flight: Flight) -> Packed:
        """Send a state to a node, and count what travels to it and back."""
        sent = pack(read, self.wire)
        sent_bytes = sent.nbytes
        if flight.context is not None:
            sent_bytes += flight.context.nbytes
        self._count_bytes(flight, sent_bytes)
        answer: Packed = await worker.run.remote(sent, flight.context, run.layers, run.position, self.wire)
        self._count_bytes(flight, answer.nbytes)
        self.counts.runs += 1
        return answer

    def _count_bytes(self, flight: Flight, number: int) -> None:
        flight.bytes += number
        self.counts.bytes += number

    async def _load(self, load: Load) -> None:
        """Let a node load another layer."""
        name = str(load.node)
        worker = self.workers[name]
        try:
            await self.load_steps(worker, [load.layer])
        except self.ray.exceptions.RayActorError as error:
            self._unreachable(name, worker, error)
            return
        except self.ray.exceptions.RayError as error:
            self.log.write("error", time.time(), node=name, why=ray_reason(error))
            self.ray.kill(worker)  # It has too little memory, and what it holds can be loaded elsewhere.
            return
        self.log.write("loaded", time.time(), node=name, step=load.layer)
        self._perform(self.router.answered(load, self._loop.time()))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Let work go on beside all else, until it is done or the dispatcher is closed."""
        task = self._loop.create_task(work)
        # The event loop itself would forget a task that nobody holds.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- Nodes that come and go ------------------------------------------------------------------------------

    async def join(self, name: str, worker: Any, steps: Sequence[int]) -> None:
        """Let a node take part that holds these steps. One that has joined before under this name is replaced."""
        if name in self.processes:
            self.lose(name)
        # From here on `_unreachable` leaves out what is still heard of an earlier node of this name.
        self.workers[name] = worker
        self.processes[name] = await worker.process.remote()
        self.gone.pop(name, None)
        self.log.write("joined", time.time(), node=name, steps=[*steps], process=self.processes[name])
        self._perform(self.router.join(name, steps, FIRST_ESTIMATE, self._loop.time()))
        # While a node computes, its call fails when it goes. This call fails also while it is idle.
        self._in_background(self._watch(name, worker))

    def lose(self, name: str) -> None:
        """Go on without a node that has gone."""
        self.log.write("lost", time.time(), node=name)
        self.gone[name] = self.processes.pop(name)
        self._perform(self.router.lose(name, self._loop.time()))

    def node_states(self) -> list[NodeState]:
        """The nodes at this moment as they joined, then those that have gone."""
        states = [NodeState.of(node, self.processes.get(str(node.key))) for node in self.router.nodes()]
        states += [NodeState.gone(name, process) for name, process in self.gone.items()]
        return states

    async def _watch(self, name: str, worker: Any) -> None:
        """Notice that a node is gone even while it has nothing to do."""
        try:
            await worker.watch.remote()
        except self.ray.exceptions.RayActorError as error:
            self._unreachable(name, worker, error)

    def _unreachable(self, name: str, worker: Any, error: Exception) -> None:
        """Suspect a node that may come back, and lose one that can't.

        Each call to a node that has gone fails: the watch, and whatever it ran or loaded. Only the first one counts.
        """
        if self.workers.get(name) is not worker or name in self.gone:
            return  # It is known already.
        if isinstance(error, self.ray.exceptions.ActorUnavailableError):
            self.log.write("suspected", time.time(), node=name)
            self._perform(self.router.suspect(name, self._loop.time()))
            self._in_background(self._recover(name, worker))
        else:
            self.lose(name)

    async def _recover(self, name: str, worker: Any) -> None:
        """Wait until a node that may live can be reached again, or is known to be gone."""
        while True:
            await asyncio.sleep(0.5)
            try:
                await worker.process.remote()
            except self.ray.exceptions.ActorUnavailableError:
                continue
            except self.ray.exceptions.RayActorError:
                self.lose(name)
                return
            self._perform(self.router.recover(name, self._loop.time()))
            # The call that watched it has failed with the connection.
            self._in_background(self._watch(name, worker))
            return
