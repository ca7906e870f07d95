"""What is done with the router's decisions, on nodes that answer in this process."""

import asyncio
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from layershuffle.errors import UserError
from layershuffle.serving.dispatcher import RATE_SECONDS, Dispatcher
from layershuffle.serving.event_log import EventLog
from layershuffle.serving.flight import Flight
from layershuffle.serving.policy import Policy
from layershuffle.serving.router import Router
from layershuffle.serving.wire import answer_of, unpack

TOKENS = np.zeros((1, 2, 4), np.float32)


class RayError(Exception):
    pass


class ActorError(RayError):
    pass


class UnavailableError(ActorError):
    pass


class Node:
    """Stands for the handle of a worker. A layer adds 2 to the power of its index to the tokens.

    Attributes:
        gone: gets the error that the call fails with which watches the node.
        fault: the error that each run fails with, if any.
        seconds: how long a run takes.
        killed: whether the dispatcher has killed it.
        run, process, watch: the methods that Ray gives the handle, whose ``remote`` is called.
    """

    def __init__(self, number):
        self.number = number
        self.gone = asyncio.get_running_loop().create_future()
        self.fault = None
        self.seconds = 0.0
        self.killed = False
        self.run = SimpleNamespace(remote=self.answer_run)
        self.process = SimpleNamespace(remote=self.answer_process)
        self.watch = SimpleNamespace(remote=self.answer_watch)

    async def answer_run(self, packed, context, layers, position, wire):
        await asyncio.sleep(self.seconds)
        if self.fault:
            raise self.fault
        read = unpack(packed)
        return answer_of(read, read + sum(2**layer for layer in layers), wire)

    async def answer_process(self):
        return self.number

    async def answer_watch(self):
        raise await self.gone


@contextmanager
def dispatching(layers, loaded=(), **policy):
    """A dispatcher of a model of so many layers, whose nodes note in ``loaded`` what they are to load.

    Args:
        layers: how many layers the model has.
        loaded: gets the number of the node and the step of each load.
        policy: the fields of the router's policy.
    """

    async def load_steps(worker, steps):
        loaded.extend((worker.number, step) for step in steps)

    def kill(worker):
        worker.killed = True

    exceptions = SimpleNamespace(RayError=RayError, RayActorError=ActorError, ActorUnavailableError=UnavailableError)
    ray = SimpleNamespace(exceptions=exceptions, kill=kill)
    router = Router(layers, Policy(**policy))
    with EventLog(None) as log:
        dispatcher = Dispatcher(router, ray, log, "float32", load_steps)
        yield dispatcher
        dispatcher.close()


def flight():
    """A request whose tokens are zeros."""
    return Flight(TOKENS, None, asyncio.get_running_loop().create_future())


def statuses(dispatcher):
    """The status of each node, by its name."""
    return {node.node: node.status for node in dispatcher.node_states()}


def test_each_layer_runs_once_and_what_travels_is_counted():
    async def serve():
        with dispatching(3) as dispatcher:
            await dispatcher.join("node0", Node(0), [0, 1])
            await dispatcher.join("node1", Node(1), [1, 2])
            request = flight()
            ended = await dispatcher.run_layers(request, None)

            assert sorted(ended.order.layers) == [0, 1, 2]
            assert np.array_equal(request.tokens, TOKENS + 1 + 2 + 4)
            counts = dispatcher.counts
            assert counts.ended == 1
            assert counts.failed == 0
            assert counts.missed == 0
            assert counts.runs == 3
            # Each run takes the tokens to a node and back.
            assert counts.bytes == request.bytes == 3 * 2 * TOKENS.nbytes
            assert dispatcher.flights == {}
            assert dispatcher.rate() == 1 / RATE_SECONDS

    asyncio.run(serve())


def test_the_layers_of_a_node_that_goes_are_loaded_elsewhere():
    loaded = []

    async def serve():
        with dispatching(2, loaded) as dispatcher:
            killed = Node(1)
            await dispatcher.join("node0", Node(0), [0])
            await dispatcher.join("node1", killed, [1])
            killed.fault = ActorError("killed")
            request = flight()
            await dispatcher.run_layers(request, None)

            assert np.array_equal(request.tokens, TOKENS + 1 + 2)
            assert statuses(dispatcher) == {"node0": "idle", "node1": "gone"}
            assert dispatcher.processes == {"node0": 0}
            assert dispatcher.gone == {"node1": 1}

    asyncio.run(serve())
    assert loaded == [(0, 1)]


def test_a_node_that_goes_while_it_is_idle_is_noticed():
    async def serve():
        with dispatching(1) as dispatcher:
            node = Node(0)
            await dispatcher.join("node0", node, [0])
            # The dispatcher begins to watch it.
            await asyncio.sleep(0)
            node.gone.set_result(ActorError("killed"))
            await asyncio.sleep(0.01)
            assert statuses(dispatcher) == {"node0": "gone"}

            # One of the same name takes its place.
            await dispatcher.join("node0", Node(1), [0])
            assert statuses(dispatcher) == {"node0": "idle"}

    asyncio.run(serve())


def test_what_a_node_cannot_run_fails_and_the_node_stays():
    async def serve():
        with dispatching(1) as dispatcher:
            node = Node(0)
            await dispatcher.join("node0", node, [0])
            node.fault = RayError("no memory")
            with pytest.raises(UserError, match="could not be run by node0: .*no memory"):
                await dispatcher.run_layers(flight(), None)
            assert dispatcher.counts.ended == 0
            assert dispatcher.counts.failed == 1
            assert statuses(dispatcher) == {"node0": "idle"}

    asyncio.run(serve())


def test_an_answer_that_comes_late_is_dropped():
    async def serve():
        with dispatching(1, step_deadline=0.05) as dispatcher:
            slow = Node(0)
            slow.seconds = 0.3
            await dispatcher.join("node0", slow, [0])
            request = flight()
            running = asyncio.create_task(dispatcher.run_layers(request, None))
            # The slow node begins. After its deadline the other node runs the same layer.
            await asyncio.sleep(0)
            await dispatcher.join("node1", Node(1), [0])
            await running
            assert np.array_equal(request.tokens, TOKENS + 1)
            assert statuses(dispatcher) == {"node0": "suspected", "node1": "idle"}

            # By now the slow node has answered, too.
            await asyncio.sleep(0.5)
            assert dispatcher.router.late == 1
            assert statuses(dispatcher) == {"node0": "idle", "node1": "idle"}

    asyncio.run(serve())


def test_requests_that_run_fail_when_all_is_closed():
    async def serve():
        with dispatching(1) as dispatcher:
            node = Node(0)
            node.seconds = 60
            await dispatcher.join("node0", node, [0])
            running = asyncio.create_task(dispatcher.run_layers(flight(), None))
            await asyncio.sleep(0)

        with pytest.raises(UserError, match="has stopped"):
            await running
        assert node.killed

    asyncio.run(serve())
