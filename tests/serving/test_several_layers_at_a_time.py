"""A request at several nodes at a time: whatever comes back when, the logits are those of the recorded order."""

import random

import pytest
import torch

from layershuffle.models.backbones import State
from layershuffle.serving.actions import Ended, Run
from layershuffle.serving.model_parts import part_for
from layershuffle.serving.policy import Policy
from layershuffle.serving.router import Router
from layershuffle.serving.wire import answer_of, newest_after


class Nodes:
    """Nodes and their coordinator in this process: a state for each request, and answers in random sequence.

    It does what ``serving.cluster`` does, without processes and a clock: each answer takes a second.

    Attributes:
        states: the newest tokens of each request.
        sent: the runs that nodes haven't answered, each with the tokens that it read.
        ended: for each request, its end, and its tokens then.
    """

    def __init__(self, model, policy, seed):
        self.model = model
        self.parts = [part_for(model, step) for step in model.order]
        self.rng = random.Random(seed)
        self.router = Router(len(model.order), policy)
        self.now = 0.0
        self.states = {}
        self.sent = []
        self.ended = {}

    def perform(self, actions):
        """Do what the router says."""
        for action in actions:
            if isinstance(action, Run):
                self.sent.append((action, self.states[action.request]))
            elif isinstance(action, Ended):
                self.ended[action.request] = (action, self.states[action.request])

    def answer(self):
        """A node that was drawn answers."""
        drawn = self.rng.randrange(len(self.sent))
        run, read = self.sent.pop(drawn)
        state = State(torch.tensor(read))
        for position, index in enumerate(run.layers, run.position):
            state, _ = self.parts[index].run_step(state, self.model.order[index], position)
        if self.router.is_current(run):
            newest = self.states[run.request]
            answer = answer_of(read, state.tokens.numpy(), "float32")
            self.states[run.request] = newest_after(answer, read, newest, "float32")
        self.now += 1
        self.perform(self.router.answered(run, self.now))


@pytest.mark.parametrize("order", [None, "(0|1) 2 3 (0+3)", "(0+1) 2 1 3", "0a 0f 1 2a 2f 3"])
@pytest.mark.parametrize("width", [1, 2, 4])
@torch.inference_mode()
def test_the_logits_are_those_of_the_recorded_order(small, order, width):
    """Bit for bit, with base orders that have groups, repeats and halves, while a node is lost and requests are due."""
    model = small(order=order, position="encode", num_classes=5).eval()
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    steps = len(model.order)
    longest_lag = 0
    for seed in range(6):
        nodes = Nodes(model, Policy(width=width, answer_by=3.0 * steps), seed)
        router = nodes.router
        # Each step has two nodes, so that one can be lost.
        for number in range(2 * steps):
            nodes.perform(router.join(number, [number % steps], 1.0, nodes.now))
        images = torch.randn(4, 1, 1, 8, 8)
        for request, image in enumerate(images):
            nodes.states[request] = model.embed(image).tokens.numpy()
            nodes.perform(router.submit(request, nodes.now))
        while len(nodes.ended) < len(images):
            nodes.answer()
            if nodes.now == 3:
                nodes.perform(router.lose(seed, nodes.now))
            nodes.perform(router.tick(nodes.now))

        for request, image in enumerate(images):
            ended, tokens = nodes.ended[request]
            # The order that ran names steps of the base order, and this one its layers.
            ran = ended.order.over(model.order)
            logits = model.classify(State(torch.tensor(tokens))).logits
            assert torch.equal(logits, model(image, ran).logits)

            executed = [unit.layer for unit in ended.order.units]
            assert sorted([*executed, *ended.missed]) == list(range(steps))
            longest_lag = max(longest_lag, ran.longest_lag)

    # Steps read older states just where they can run at a time.
    if width > 1:
        assert longest_lag > 0
    else:
        assert longest_lag == 0
