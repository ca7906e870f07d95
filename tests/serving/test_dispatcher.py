"""What is done with the router's decisions, on nodes that answer in this process."""

import asyncio
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from layershuffle.errors import UserError
from layershuffle.serving.dispatcher import Dispatcher
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
    """Stands for the handle of a worker. A layer adds 2 to the power of its index to the tokens."""

    def __init__(self, number):
        self.number = number
        self.gone = asyncio.get_running_loop().create_future()
        self.fault = None
        self.seconds = 0.0
        self.killed = False
        for name in ("run", "process", "watch"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"answer_{name}")))

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
    """A dispatcher of a model of so many layers, whose nodes note in ``loaded`` what they are to load."""

    async def load_steps(worker, steps):
        loaded.extend((worker.number, step) for step in steps)

    exceptions = SimpleNamespace(RayError=RayError, RayActorError=ActorError, ActorUnavailableError=UnavailableError)
    ray = SimpleNamespace(exceptions=exceptions, kill=lambda worker: setattr(worker, "killed", True))
    with EventLog(None) as log:
        dispatcher = Dispatcher(Router(layers, Policy(**policy)), ray, log, "float32", load_steps)
        yield dispatcher
        dispatcher.close()


def flight():
    return Flight(TOKENS, None, asyncio.get_running_loop().create_future())


def statuses(dispatcher):
    return {node.node: node.status for node in dispatcher.node_states()}


def test_each_layer_runs_once_and_what_travels_is_counted():
    async def serve():
        with dispatching(3) as dispatcher:
            for number, steps in enumerate([[0, 1], [1, 2]]):
                await dispatcher.join(f"node{number}", Node(number), steps)
            request = flight()
            ended = await dispatcher.run_layers(request, None)
            assert sorted(ended.order.layers) == [0, 1, 2]
            assert np.array_equal(request.tokens, TOKENS + 7)
            counts = dispatcher.counts
            assert (counts.ended, counts.failed, counts.missed, counts.runs) == (1, 0, 0, 3)
            assert counts.bytes == request.bytes == 3 * 2 * TOKENS.nbytes
            assert dispatcher.flights == {}
            assert dispatcher.rate() == 1 / 5

    asyncio.run(serve())


def test_the_layers_of_a_node_that_goes_are_loaded_elsewhere():
    loaded = []

    async def serve():
        with dispatching(2, loaded) as dispatcher:
            nodes = [Node(0), Node(1)]
            for number, node in enumerate(nodes):
                await dispatcher.join(f"node{number}", node, [number])
            nodes[1].fault = ActorError("killed")
            request = flight()
            await dispatcher.run_layers(request, None)
            assert np.array_equal(request.tokens, TOKENS + 3)
            assert statuses(dispatcher) == {"node0": "idle", "node1": "gone"}
            assert (dispatcher.processes, dispatcher.gone) == ({"node0": 0}, {"node1": 1})

    asyncio.run(serve())
    assert loaded == [(0, 1)]


def test_a_node_that_goes_while_it_is_idle_is_noticed():
    async def serve():
        with dispatching(1) as dispatcher:
            node = Node(0)
            await dispatcher.join("node0", node, [0])
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
            assert (dispatcher.counts.ended, dispatcher.counts.failed) == (0, 1)
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
            await asyncio.sleep(0)
            await dispatcher.join("node1", Node(1), [0])
            await running
            assert np.array_equal(request.tokens, TOKENS + 1)
            assert statuses(dispatcher) == {"node0": "suspected", "node1": "idle"}
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
