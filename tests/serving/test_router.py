"""The router on a clock of the test's own: whatever happens to the nodes, each request ends once and rightly."""

from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from layershuffle import Order, UserError
from layershuffle.serving.actions import Ended, Load, Run
from layershuffle.serving.policy import Policy, Routing
from layershuffle.serving.router import Router

DEPTH = 4
LAYERS = st.lists(st.integers(0, DEPTH - 1), min_size=1, max_size=3, unique=True)
SECONDS = st.sampled_from([0.1, 1.0, 3.0])


class Failures(RuleBasedStateMachine):
    """Requests, answers, losses, stalls and joins in any sequence; the model of the truth is as simple as can be."""

    @initialize(
        routing=st.sampled_from(get_args(Routing)),
        on_loss=st.sampled_from(["reassign", "skip"]),
        max_missed=st.integers(0, DEPTH),
        visit_and_width=st.sampled_from([(1, 1), (2, 1), (1, 2), (1, 3), (1, DEPTH)]),
        answer_by=st.sampled_from([None, 2.0, 5.0]),
    )
    def start(self, routing, on_loss, max_missed, visit_and_width, answer_by):
        visit, width = visit_and_width
        self.policy = Policy(routing, on_loss, max_missed, 1.0, 3.0, 20.0, visit, width, answer_by)
        self.router = Router(DEPTH, self.policy)
        self.now, self.submitted, self.late = 0.0, 0, 0
        self.holds = {}  # what each living node holds
        self.tasks = {}  # what each living node was told last and hasn't answered
        self.orphaned = []  # what nodes were told that are gone since
        self.running = {}  # the Runs that count, by request
        self.since = {}  # when each node was told
        self.came = {}  # when each request came
        self.executed, self.lags, self.ended = {}, {}, {}
        self.ever_held = set()

    def perform(self, actions):
        for action in actions:
            if isinstance(action, Ended):
                assert action.request not in self.ended
                self.check_end(action)
                self.ended[action.request] = action
                self.running.pop(action.request)
                continue
            assert action.node not in self.tasks, "a node was told two things at once"
            self.tasks[action.node], self.since[action.node] = action, self.now
            if isinstance(action, Run):
                runs = self.running[action.request]
                done = self.executed[action.request]
                begun = [*done, *(layer for run in runs for layer in run.layers)]
                assert action.position == len(done)
                assert not {*action.layers} & {*begun}, "a layer runs twice"
                assert {*action.layers} <= self.holds[action.node]
                if self.policy.routing != "any" and self.policy.width == 1:
                    assert [*done, *action.layers] == sorted([*done, *action.layers])
                runs.append(action)
                assert len(runs) <= self.policy.width
            else:
                assert self.policy.on_loss == "reassign"
                assert action.layer not in self.holds[action.node]

    def check_end(self, ended):
        """A request ends with what has come, and says what is missing."""
        executed, lags = self.executed[ended.request], self.lags[ended.request]
        assert [(*step.units[0], step.lag) for step in ended.order] == [*zip(executed, [""] * DEPTH, lags)]
        assert ended.order.check(DEPTH).longest_lag < DEPTH
        assert len({*executed, *ended.missed}) == len(executed) + len(ended.missed)
        assert ended.failed or {*executed, *ended.missed} == set(range(DEPTH))
        due = self.came[ended.request] + (self.policy.answer_by or self.policy.request_deadline)
        if self.policy.answer_by is None:
            assert len(ended.missed) <= (self.policy.max_missed if self.policy.on_loss == "skip" else 0)
            assert not ended.failed or self.now >= due
        else:
            assert not ended.failed
            assert len(ended.missed) <= self.policy.max_missed or self.now >= due
        assert ended.seconds == self.now - self.came[ended.request]

    def drop(self, node):
        """A node that is gone, or suspected, runs nothing that counts."""
        for runs in self.running.values():
            runs[:] = [run for run in runs if run.node != node]

    def counts(self, run):
        return any(current is run for current in self.running.get(run.request, []))

    @rule()
    def submit(self):
        self.submitted += 1
        self.executed[self.submitted], self.lags[self.submitted], self.running[self.submitted] = [], [], []
        self.came[self.submitted] = self.now
        self.perform(self.router.submit(self.submitted, self.now))

    @rule(node=st.integers(0, 5), layers=LAYERS, estimate=SECONDS)
    def join(self, node, layers, estimate):
        self.forget(node)
        self.holds[node] = {*layers}
        self.ever_held |= {*layers}
        self.perform(self.router.join(node, layers, estimate, self.now))

    def forget(self, node):
        self.holds.pop(node, None)
        if node in self.tasks:
            self.orphaned.append(self.tasks.pop(node))
        self.drop(node)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def lose(self, data):
        node = data.draw(st.sampled_from(sorted(self.holds)))
        self.forget(node)
        self.perform(self.router.lose(node, self.now))

    @precondition(lambda self: self.tasks)
    @rule(data=st.data())
    def answer(self, data):
        node = data.draw(st.sampled_from(sorted(self.tasks)))
        self.deliver(self.tasks.pop(node), alive=True)

    @precondition(lambda self: self.orphaned)
    @rule()
    def answer_of_the_dead(self):
        self.deliver(self.orphaned.pop(), alive=False)

    def deliver(self, task, alive):
        if isinstance(task, Load):
            if alive:
                self.holds[task.node].add(task.layer)
        elif self.counts(task):
            assert self.router.is_current(task)
            self.running[task.request].remove(task)
            self.lags[task.request] += [len(self.executed[task.request]) - task.position, 0][: len(task.layers)]
            self.executed[task.request] += task.layers
        else:
            assert not self.router.is_current(task)
            self.late += 1
        self.perform(self.router.answered(task, self.now))
        assert self.router.late == self.late

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), back=st.booleans())
    def unreachable(self, data, back):
        """A node can't be reached, and if it can again, what it was told is forgotten."""
        node = data.draw(st.sampled_from(sorted(self.holds)))
        self.drop(node)
        self.perform(self.router.suspect(node, self.now))
        if back:
            self.tasks.pop(node, None)
            self.perform(self.router.recover(node, self.now))

    @rule(seconds=SECONDS)
    def wait(self, seconds):
        self.now += seconds
        for node, since in self.since.items():
            if node in self.tasks and since + self.policy.step_deadline <= self.now:
                self.drop(node)
        due = self.router.next_time() <= self.now
        actions = self.router.tick(self.now)
        assert due or not actions
        self.perform(actions)

    def is_in_time(self, node, request):
        """Whether what a node of the router would run is expected to end before the request is answered."""
        if self.policy.answer_by is None:
            return True
        # The router's own arithmetic: 0.3 + 2.0 - 0.3 is a little less than 2.0, and here it may decide.
        due = self.came[request] + self.policy.answer_by
        expected = min(node.estimate, (due - self.came[request]) / 2)
        return self.now + expected <= due

    @invariant()
    def nothing_idles_while_work_could_be_done(self):
        suspected = {node.key for node in self.router.nodes() if node.suspected}
        idle = {node: layers for node, layers in self.holds.items() if node not in self.tasks.keys() | suspected}
        for request in range(1, self.submitted + 1):
            if request in self.ended or len(self.running[request]) == self.policy.width:
                continue
            begun = {*self.executed[request], *self.router._requests[request].missed}
            begun.update(layer for run in self.running[request] for layer in run.layers)
            left = [layer for layer in range(DEPTH) if layer not in begun]
            if not left:
                continue
            wanted = left if self.policy.routing == "any" else left[:1]
            able = [node for node, layers in idle.items() if layers & {*wanted}]
            able = [node for node in able if self.is_in_time(self.router._nodes[node], request)]
            # In a chain or on a path a request may wait for a node that is busy, or too slow to answer in time, while
            # another one is idle.
            waiting = self.router._requests[request]
            chosen = {"chain": waiting.chain, "path": waiting.path.get(left[0])}.get(self.policy.routing)
            may_wait = chosen is not None and (chosen.key in self.tasks or not self.is_in_time(chosen, request))
            assert not able or may_wait

    @invariant()
    def what_nodes_are_planned_for_is_what_paths_say(self):
        paths = [node for request in self.router._requests.values() for node in request.path.values()]
        assert all(node.planned == paths.count(node) for node in self.router._nodes.values())

    @invariant()
    def what_nobody_holds_is_loaded(self):
        living = {node.key for node in self.router.nodes() if not node.suspected}
        if self.policy.on_loss == "reassign" and living:
            held = set().union(*(self.holds[node] for node in living))
            assert self.ever_held - held == self.router._holders.loading.keys() - held

    def teardown(self):
        if hasattr(self, "router"):
            self.wait(self.policy.answer_by or self.policy.request_deadline)
            assert self.ended.keys() == set(range(1, self.submitted + 1))
            assert self.router.next_time() == float("inf") or self.tasks


Failures.TestCase.settings = settings(
    max_examples=200, derandomize=True, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
TestFailures = Failures.TestCase


def runs(actions):
    return [action for action in actions if isinstance(action, Run)]


def serve(policy, holders, requests=1, seconds=1.0):
    """All that nodes do that each take ``seconds``; returns what ended and when."""
    router, now, ended = Router(1 + max(map(max, holders)), policy), 0.0, []
    actions = [action for n, layers in enumerate(holders) for action in router.join(n, layers, seconds, now)]
    for request in range(requests):
        actions += router.submit(request, now)
    while busy := runs(actions):
        now += seconds
        ended += [(action, now) for action in actions if isinstance(action, Ended)]
        actions = [action for run in busy for action in router.answered(run, now)]
    return ended + [(action, now) for action in actions if isinstance(action, Ended)]


def test_any_order_fills_the_pipeline_that_a_sequence_leaves_empty():
    """Four requests on four nodes of one layer each: any order takes 4 steps, the sequence 4 + 3."""
    holders = [[layer] for layer in range(4)]
    finished = {routing: max(now for _, now in serve(Policy(routing), holders, 4)) for routing in ("any", "sequential")}
    assert finished == {"any": 4.0, "sequential": 7.0}


def test_the_oldest_request_goes_first_and_the_slowest_node_is_used_first():
    router = Router(2, Policy("any"))
    router.join("fast", [0], 1.0, 0)
    router.join("slow", [1], 5.0, 0)
    (first,), (second,), none = (router.submit(request, 0) for request in (1, 2, 3))
    assert (first.node, second.node, none) == ("slow", "fast", [])
    assert [run.request for run in runs(router.answered(second, 1))] == [3]
    assert [run.request for run in runs(router.answered(first, 5))] == [2]


def test_a_node_of_two_layers_runs_the_oldest_request_whichever_it_needs():
    router = Router(2, Policy("sequential"))
    router.join("node", [0, 1], 1.0, 0)
    (run,), none = (router.submit(request, 0) for request in (1, 2))
    (after,) = router.answered(run, 1)
    assert (after.request, after.layers, none) == (1, (1,), [])


def test_a_node_may_run_several_layers_in_a_visit():
    (ended, now), *none = serve(Policy("sequential", visit=2), [[0, 1], [2, 3, 4]])
    assert (ended.order, now, none) == (Order("0 1 2 3 4"), 3.0, [])
    (ended, now), *none = serve(Policy("any", visit=3), [[0, 3], [1, 2]])
    assert (ended.order.layers, now, none) == ({0, 1, 2, 3}, 2.0, [])
    assert ended.order.longest_lag == 0


def test_skipping_in_sequence_goes_on_and_in_any_order_ends():
    for routing, waits in (("sequential", 2), ("any", 1)):
        router = Router(3, Policy(routing, "skip", max_missed=2, patience=1.0))
        router.join("node", [1], 1.0, 0)
        actions, now = router.submit(1, 0), 0.0
        while not any(isinstance(action, Ended) for action in actions):
            if busy := runs(actions):
                now += 0.5
                actions = router.answered(busy[0], now)
            else:
                now = router.next_time()
                actions = router.tick(now)
        (ended,) = actions
        assert (ended.order, sorted(ended.missed), ended.seconds) == (Order([1]), [0, 2], waits + 0.5)


def test_a_chain_prefers_fast_nodes():
    """A node three times as fast is drawn three times as often."""
    router = Router(1, Policy("chain"), seed=1)
    router.join("slow", [0], 3.0, 0)
    router.join("fast", [0], 1.0, 0)
    for request in range(1000):
        router.submit(request, 0)
    fast = sum(request.chain.key == "fast" for request in router._requests.values())
    assert fast / 1000 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 1000) ** 0.5)


def test_a_path_avoids_nodes_that_are_slow_or_in_demand_and_goes_around_those_that_are_gone():
    router = Router(2, Policy("path"))
    for node, layer, seconds in (("slow", 0, 2.5), ("fast", 0, 1.0), ("last", 1, 1.0)):
        router.join(node, [layer], seconds, 0)
    chosen = [router.submit(request, 0) for request in range(4)]
    assert [[run.node for run in actions] for actions in chosen] == [["fast"], [], ["slow"], []]
    assert [request.path[0].key for request in router._requests.values()] == ["fast", "fast", "slow", "fast"]
    assert runs(router.lose("fast", 1)) == []
    assert {request.path[0].key for request in router._requests.values()} == {"slow"}


def test_a_cancelled_request_fails_and_leaves_its_node_at_work():
    router = Router(1, Policy())
    router.join("node", [0], 1.0, 0)
    (run,) = router.submit(1, 0)
    assert router.submit(2, 0) == []
    assert router.cancel(1, 1.0) == [Ended(1, Order(), (), 1.0, True)]
    assert router.cancel(1, 1.0) == []
    assert [after.request for after in runs(router.answered(run, 2))] == [2]
    assert router.late == 1


def test_an_idle_node_that_can_be_reached_again_is_told_one_thing():
    """It is to load the layer of the other node, which was lost meanwhile, and not to run a request too."""
    router = Router(2, Policy())
    router.join("other", [0, 1], 1.0, 0)
    router.join("node", [0], 1.0, 0)
    router.suspect("node", 0)
    router.submit(1, 0)
    router.lose("other", 1)
    assert router.recover("node", 2) == [Load("node", 1)]


def test_a_request_is_at_as_many_nodes_as_its_width():
    """Twelve layers of a second each, on nodes of their own: three at a time take 4 s.

    Nobody waits for the other two: the layer that starts when the first of three has ended doesn't read their results.
    """
    holders = [[layer] for layer in range(12)]
    for width, seconds in ((1, 12), (3, 4), (4, 3), (12, 1)):
        (ended, now), *none = serve(Policy("any", width=width), holders)
        assert (now, none, ended.order.layers) == (seconds, [], set(range(12)))
        assert [step.lag for step in ended.order] == [min(index, width - 1) for index in range(12)]


def test_a_sequence_starts_its_layers_in_sequence_and_a_slow_one_ends_later():
    router = Router(3, Policy("sequential", width=2))
    for layer in range(3):
        router.join(layer, [layer], 1.0, 0)
    first, second = router.submit(1, 0)
    assert (first.layers, second.layers) == ((0,), (1,))
    (third,) = router.answered(second, 1)
    assert (third.layers, third.position) == ((2,), 1)
    assert router.answered(third, 2) == []
    (ended,) = router.answered(first, 3)
    assert ended.order == Order("1 2 0<2")


def test_a_layer_that_takes_too_long_runs_elsewhere_and_counts_once():
    router = Router(2, Policy("any", width=2, step_deadline=2.0))
    for node, layer in (("slow", 0), ("other", 1), ("spare", 0)):
        router.join(node, [layer], 1.0, 0)
    submitted = router.submit(1, 0)
    (of_0,) = (run for run in submitted if run.layers == (0,))
    (of_1,) = (run for run in submitted if run.layers == (1,))
    assert router.answered(of_1, 1) == []
    (again,) = router.tick(2)
    assert (again.layers, again.position, {again.node, of_0.node}) == ((0,), 1, {"slow", "spare"})
    assert router.answered(of_0, 3) == []
    (ended,) = router.answered(again, 3)
    assert (ended.order, router.late) == (Order("1 0"), 1)


def test_a_request_is_not_held_up_while_a_node_runs_some_of_it():
    """Its patience begins only when it runs nowhere any more."""
    router = Router(2, Policy("any", "skip", width=2, patience=1.0))
    router.join("node", [0, 1], 5.0, 0)
    (first,) = router.submit(1, 0)
    assert router.tick(4) == []
    (second,) = router.answered(first, 5)
    assert router.answered(second, 10)[0].missed == ()


def test_a_request_is_answered_in_time_with_what_has_come():
    router = Router(3, Policy("any", width=2, answer_by=2.0))
    for layer in range(2):
        router.join(layer, [layer], 1.0, 0)
    first, second = router.submit(1, 0)
    assert router.answered(first, 1) == []
    assert router.next_time() == 2
    (ended,) = router.tick(2)
    assert (ended.order, ended.missed, ended.failed) == (Order(first.layers), (*second.layers, 2), False)
    assert not router.is_current(second)
    assert router.answered(second, 3) == []
    assert router.late == 1


def test_what_would_end_too_late_does_not_start():
    """The slow node leaves the older request to the fast one, and runs the younger."""
    router = Router(2, Policy("any", answer_by=10.0))
    router.join("slow", [0], 4.0, 0)
    router.join("fast", [0], 1.0, 0)
    for node in ("slow", "fast"):
        router.suspect(node, 0)
    router.submit(1, 0)
    router.submit(2, 5)
    (of_slow,) = router.recover("slow", 7)
    (of_fast,) = router.recover("fast", 7)
    assert (of_slow.request, of_fast.request) == (2, 1)


def test_a_node_that_seems_too_slow_for_any_request_is_tried():
    router = Router(1, Policy(answer_by=1.0))
    router.join("node", [0], 60.0, 0)
    (run,) = router.submit(1, 0)
    (ended,) = router.answered(run, 0.3)
    assert ended.missed == ()


def test_the_time_to_answer_begins_when_the_caller_came():
    router = Router(1, Policy(answer_by=2.0))
    router.submit(1, 5.0, arrived=4.0)
    router.submit(2, 5.0)
    assert [ended.request for ended in router.tick(6.0)] == [1]
    assert [ended.request for ended in router.tick(7.0)] == [2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"routing": "fast"},
        {"on_loss": "cry"},
        {"visit": 0},
        {"width": 0},
        {"visit": 2, "width": 2},
        {"patience": -1},
        {"answer_by": 0},
        {"answer_by": 61},
    ],
)
def test_a_policy_that_cannot_be_is_refused(wrong):
    with pytest.raises(UserError):
        Policy(**wrong)
