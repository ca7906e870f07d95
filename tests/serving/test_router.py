"""The router on a clock of the test's own: whatever happens to the nodes, each request ends once and rightly."""

from typing import get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from layershuffle import Order, UserError
from layershuffle.orders.order import Unit
from layershuffle.serving.actions import Ended, Load, Run
from layershuffle.serving.policy import Policy, Routing
from layershuffle.serving.router import Router

DEPTH = 4
LAYERS = st.lists(st.integers(0, DEPTH - 1), min_size=1, max_size=3, unique=True)
SECONDS = st.sampled_from([0.1, 1.0, 3.0])


class Failures(RuleBasedStateMachine):
    """Requests, answers, losses, stalls and joins in any sequence, beside a simple model of what must be true.

    Hypothesis draws the rules, which are the events. After each of them the invariants must hold. Nodes are called by
    numbers.
    """

    @initialize(
        routing=st.sampled_from(get_args(Routing)),
        on_loss=st.sampled_from(["reassign", "skip"]),
        max_missed=st.integers(0, DEPTH),
        visit_and_width=st.sampled_from([(1, 1), (2, 1), (1, 2), (1, 3), (1, DEPTH)]),
        answer_by=st.sampled_from([None, 2.0, 5.0]),
    )
    def start(self, routing, on_loss, max_missed, visit_and_width, answer_by):
        visit, width = visit_and_width
        self.policy = Policy(
            routing=routing,
            on_loss=on_loss,
            max_missed=max_missed,
            patience=1.0,
            step_deadline=3.0,
            request_deadline=20.0,
            visit=visit,
            width=width,
            answer_by=answer_by,
        )
        self.router = Router(DEPTH, self.policy)
        self.now = 0.0
        # How many requests were submitted, and how many answers came too late to count.
        self.submitted = 0
        self.late = 0

        # By node: the layers that each living node holds, what it was told last and hasn't answered, and when.
        self.holds = {}
        self.tasks = {}
        self.told_at = {}
        # What nodes were told that have gone since.
        self.orphaned = []
        # The layers that any node ever held.
        self.ever_held = set()

        # By request: when it came, its runs whose answers count, the layers that ran, their lags, and its end.
        self.submitted_at = {}
        self.running = {}
        self.executed = {}
        self.lags = {}
        self.ended = {}

    # --- What the router says --------------------------------------------------------------------------------

    def perform(self, actions):
        """Note what the router says, and check that it may say so."""
        for action in actions:
            if isinstance(action, Ended):
                assert action.request not in self.ended
                self.check_end(action)
                self.ended[action.request] = action
                self.running.pop(action.request)
                continue

            assert action.node not in self.tasks, "a node was told two things at once"
            self.tasks[action.node] = action
            self.told_at[action.node] = self.now
            if isinstance(action, Run):
                self.check_run(action)
                self.running[action.request].append(action)
                assert len(self.running[action.request]) <= self.policy.width
            else:
                assert self.policy.on_loss == "reassign"
                assert action.layer not in self.holds[action.node]

    def check_run(self, run):
        """A node runs layers that it holds, that the request still lacks, and that the routing allows."""
        executed = self.executed[run.request]
        assert run.position == len(executed)

        begun = set(executed)
        for other in self.running[run.request]:
            begun.update(other.layers)
        assert begun.isdisjoint(run.layers), "a layer runs twice"
        assert self.holds[run.node].issuperset(run.layers)

        # With more nodes at a time layers start in sequence, but may end in another one.
        if self.policy.routing != "any" and self.policy.width == 1:
            assert [*executed, *run.layers] == sorted([*executed, *run.layers])

    def check_end(self, ended):
        """A request ends with what has come, and says what is missing."""
        executed = self.executed[ended.request]
        assert [step.units for step in ended.order] == [(Unit(layer),) for layer in executed]
        assert [step.lag for step in ended.order] == self.lags[ended.request]
        assert ended.order.check(DEPTH).longest_lag < DEPTH

        executed_or_missed = [*executed, *ended.missed]
        assert len(set(executed_or_missed)) == len(executed_or_missed)
        assert ended.failed or set(executed_or_missed) == set(range(DEPTH))

        submitted_at = self.submitted_at[ended.request]
        assert ended.seconds == self.now - submitted_at
        if self.policy.answer_by is None:
            most_missed = self.policy.max_missed if self.policy.on_loss == "skip" else 0
            assert len(ended.missed) <= most_missed
            assert not ended.failed or self.now >= submitted_at + self.policy.request_deadline
        else:
            # When the answer is due, the request ends without failing, whatever it misses.
            assert not ended.failed
            assert len(ended.missed) <= self.policy.max_missed or self.now >= submitted_at + self.policy.answer_by

    # --- What happens ----------------------------------------------------------------------------------------

    @rule()
    def submit(self):
        self.submitted += 1
        request = self.submitted
        self.submitted_at[request] = self.now
        self.running[request] = []
        self.executed[request] = []
        self.lags[request] = []
        self.perform(self.router.submit(request, self.now))

    @rule(node=st.integers(0, 5), layers=LAYERS, estimate=SECONDS)
    def join(self, node, layers, estimate):
        # A living node of this number is replaced, as if it had been lost before.
        self.forget(node)
        self.holds[node] = set(layers)
        self.ever_held.update(layers)
        self.perform(self.router.join(node, layers, estimate, self.now))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def lose(self, data):
        node = data.draw(st.sampled_from(sorted(self.holds)))
        self.forget(node)
        self.perform(self.router.lose(node, self.now))

    def forget(self, node):
        """A node is gone. What it was told last may still be answered, which must not count."""
        self.holds.pop(node, None)
        if node in self.tasks:
            self.orphaned.append(self.tasks.pop(node))
        self.drop_runs(node)

    def drop_runs(self, node):
        """What a node runs that is gone or suspected doesn't count any more."""
        for request, runs_of_request in self.running.items():
            self.running[request] = [run for run in runs_of_request if run.node != node]

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
        """Hand the router the answer of a node that lives, or that is gone since it was told the task."""
        if isinstance(task, Load):
            if alive:
                self.holds[task.node].add(task.layer)
        elif self.counts(task):
            assert self.router.is_current(task)
            self.running[task.request].remove(task)
            executed = self.executed[task.request]
            # The second layer of a visit reads what the first has just returned: it has no lag.
            lags_of_visit = [len(executed) - task.position, 0]
            self.lags[task.request] += lags_of_visit[: len(task.layers)]
            executed += task.layers
        else:
            assert not self.router.is_current(task)
            self.late += 1

        self.perform(self.router.answered(task, self.now))
        assert self.router.late == self.late

    def counts(self, run):
        """Whether the answer to this very run counts, if it comes now."""
        return any(current is run for current in self.running.get(run.request, []))

    @precondition(lambda self: self.holds)
    @rule(data=st.data(), back=st.booleans())
    def unreachable(self, data, back):
        """A node can't be reached, and if it can again, what it was told is forgotten."""
        node = data.draw(st.sampled_from(sorted(self.holds)))
        self.drop_runs(node)
        self.perform(self.router.suspect(node, self.now))
        if back:
            self.tasks.pop(node, None)
            self.perform(self.router.recover(node, self.now))

    @rule(seconds=SECONDS)
    def wait(self, seconds):
        self.now += seconds
        for node in self.tasks:
            if self.told_at[node] + self.policy.step_deadline <= self.now:
                self.drop_runs(node)

        is_due = self.router.next_time() <= self.now
        actions = self.router.tick(self.now)
        assert is_due or not actions
        self.perform(actions)

    # --- What is true after each event -----------------------------------------------------------------------

    @invariant()
    def nothing_idles_while_work_could_be_done(self):
        unavailable = set(self.tasks)
        unavailable.update(node.key for node in self.router.nodes() if node.suspected)
        idle = [node for node in self.holds if node not in unavailable]

        for request in range(1, self.submitted + 1):
            if request in self.ended or len(self.running[request]) == self.policy.width:
                continue
            left = self.layers_left(request)
            if not left:
                continue
            wanted = left if self.policy.routing == "any" else left[:1]
            able = []
            for node in idle:
                holds_wanted = not self.holds[node].isdisjoint(wanted)
                if holds_wanted and self.is_in_time(self.router._nodes[node], request):
                    able.append(node)

            # In a chain or on a path a request may wait for a node that is busy, or too slow to answer in time, while
            # another one is idle.
            waiting = self.router._requests[request]
            chosen = None
            if self.policy.routing == "chain":
                chosen = waiting.chain
            elif self.policy.routing == "path":
                chosen = waiting.path.get(left[0])
            may_wait = chosen is not None and (chosen.key in self.tasks or not self.is_in_time(chosen, request))
            assert not able or may_wait

    def layers_left(self, request):
        """The layers that a request has neither begun nor given up, ascending."""
        begun_or_missed = {*self.executed[request], *self.router._requests[request].missed}
        for run in self.running[request]:
            begun_or_missed.update(run.layers)
        return [layer for layer in range(DEPTH) if layer not in begun_or_missed]

    def is_in_time(self, node, request):
        """Whether what a node of the router would run is expected to end before the request is answered."""
        if self.policy.answer_by is None:
            return True
        submitted_at = self.submitted_at[request]
        due = submitted_at + self.policy.answer_by
        # Written just as in the router, since rounding may decide: 0.3 + 2.0 - 0.3 is a little less than 2.0.
        expected = min(node.estimate, (due - submitted_at) / 2)
        return self.now + expected <= due

    @invariant()
    def what_nodes_are_planned_for_is_what_paths_say(self):
        on_paths = []
        for request in self.router._requests.values():
            on_paths += request.path.values()
        for node in self.router._nodes.values():
            assert node.planned == on_paths.count(node)

    @invariant()
    def what_nobody_holds_is_loaded(self):
        living = {node.key for node in self.router.nodes() if not node.suspected}
        if self.policy.on_loss == "reassign" and living:
            held = set()
            for node in living:
                held.update(self.holds[node])
            assert self.ever_held - held == self.router._holders.loading.keys() - held

    def teardown(self):
        """At last every request has ended, and the router waits for nothing but answers."""
        # Hypothesis calls this even where ``start`` has not run.
        if hasattr(self, "router"):
            self.wait(self.policy.answer_by or self.policy.request_deadline)
            assert self.ended.keys() == set(range(1, self.submitted + 1))
            assert self.router.next_time() == float("inf") or self.tasks


Failures.TestCase.settings = settings(
    max_examples=200, derandomize=True, stateful_step_count=40, deadline=None, report_multiple_bugs=False
)
TestFailures = Failures.TestCase


def runs(actions):
    """Those of the actions that let a node run layers."""
    return [action for action in actions if isinstance(action, Run)]


def serve(policy, holders, requests=1, seconds=1.0):
    """Submit requests at once to nodes that all take the same time for whatever they are told.

    Args:
        policy: how the requests are routed.
        holders: for each node, the layers that it holds.
        requests: how many there are.
        seconds: what a node takes to answer.

    Returns:
        For each request its ``Ended``, and the time at which it ended.
    """
    depth = 1 + max(max(layers) for layers in holders)
    router = Router(depth, policy)
    now = 0.0
    actions = []
    for node, layers in enumerate(holders):
        actions += router.join(node, layers, seconds, now)
    for request in range(requests):
        actions += router.submit(request, now)

    ended = []
    while True:
        ended += [(action, now) for action in actions if isinstance(action, Ended)]
        to_answer = runs(actions)
        if not to_answer:
            return ended
        now += seconds
        actions = []
        for run in to_answer:
            actions += router.answered(run, now)


def test_any_order_fills_the_pipeline_that_a_sequence_leaves_empty():
    """Four requests on four nodes of one layer each: any order takes 4 steps, the sequence 4 + 3."""
    finished = {}
    for routing in ("any", "sequential"):
        ended = serve(Policy(routing), [[0], [1], [2], [3]], requests=4)
        finished[routing] = max(now for _, now in ended)
    assert finished == {"any": 4.0, "sequential": 7.0}


def test_the_oldest_request_goes_first_and_the_slowest_node_is_used_first():
    router = Router(2, Policy("any"))
    router.join("fast", [0], 1.0, 0)
    router.join("slow", [1], 5.0, 0)

    (first,) = router.submit(1, 0)
    (second,) = router.submit(2, 0)
    assert router.submit(3, 0) == []
    assert first.node == "slow"
    assert second.node == "fast"

    # The first request still runs on the slow node, so that the fast one takes the third. For the slow one, the second
    # is the oldest that waits.
    assert [run.request for run in runs(router.answered(second, 1))] == [3]
    assert [run.request for run in runs(router.answered(first, 5))] == [2]


def test_a_node_of_two_layers_runs_the_oldest_request_whichever_it_needs():
    router = Router(2, Policy("sequential"))
    router.join("node", [0, 1], 1.0, 0)
    (run,) = router.submit(1, 0)
    assert router.submit(2, 0) == []

    (after,) = router.answered(run, 1)
    assert after.request == 1
    assert after.layers == (1,)


def test_a_node_may_run_several_layers_in_a_visit():
    # Two layers at the first node, two at the second, and one more there.
    ((ended, now),) = serve(Policy("sequential", visit=2), [[0, 1], [2, 3, 4]])
    assert ended.order == Order("0 1 2 3 4")
    assert now == 3.0

    ((ended, now),) = serve(Policy("any", visit=3), [[0, 3], [1, 2]])
    assert ended.order.layers == {0, 1, 2, 3}
    assert now == 2.0
    # The second layer of a visit reads what the first one returned.
    assert ended.order.longest_lag == 0


def test_skipping_in_sequence_goes_on_and_in_any_order_ends():
    """The only node holds layer 1. In sequence a request waits for layer 0, and later for 2; else for both at once."""
    patience = 1.0
    step_seconds = 0.5
    for routing, waits in (("sequential", 2), ("any", 1)):
        router = Router(3, Policy(routing, "skip", max_missed=2, patience=patience))
        router.join("node", [1], 1.0, 0)
        now = 0.0
        actions = router.submit(1, now)
        while not any(isinstance(action, Ended) for action in actions):
            running = runs(actions)
            if running:
                now += step_seconds
                actions = router.answered(running[0], now)
            else:
                now = router.next_time()
                actions = router.tick(now)

        (ended,) = actions
        assert ended.order == Order([1])
        assert sorted(ended.missed) == [0, 2]
        assert ended.seconds == waits * patience + step_seconds


def test_a_chain_prefers_fast_nodes():
    """A node three times as fast is drawn three times as often."""
    router = Router(1, Policy("chain"), seed=1)
    router.join("slow", [0], 3.0, 0)
    router.join("fast", [0], 1.0, 0)
    requests = 1000
    for request in range(requests):
        router.submit(request, 0)

    fast = sum(request.chain.key == "fast" for request in router._requests.values())
    standard_deviation = (0.75 * 0.25 / requests) ** 0.5
    assert fast / requests == pytest.approx(0.75, abs=4 * standard_deviation)


def test_a_path_avoids_nodes_that_are_slow_or_in_demand_and_goes_around_those_that_are_gone():
    router = Router(2, Policy("path"))
    router.join("slow", [0], 2.5, 0)
    router.join("fast", [0], 1.0, 0)
    router.join("last", [1], 1.0, 0)

    started_on = []
    for request in range(4):
        actions = router.submit(request, 0)
        started_on.append([run.node for run in actions])
    requests = router._requests.values()

    # The fast node would take 1, 2, 3 and again 3 s with the requests that are planned for it, and the slow one 2.5 s,
    # or 5 s once it has one.
    assert [request.path[0].key for request in requests] == ["fast", "fast", "slow", "fast"]
    # Each node runs one at a time; the others wait.
    assert started_on == [["fast"], [], ["slow"], []]

    assert runs(router.lose("fast", 1)) == []
    assert {request.path[0].key for request in requests} == {"slow"}


def test_a_cancelled_request_fails_and_leaves_its_node_at_work():
    router = Router(1, Policy())
    router.join("node", [0], 1.0, 0)
    (run,) = router.submit(1, 0)
    assert router.submit(2, 0) == []

    assert router.cancel(1, 1.0) == [Ended(request=1, order=Order(), missed=(), seconds=1.0, failed=True)]
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
        ((ended, now),) = serve(Policy("any", width=width), holders)
        assert now == seconds
        assert ended.order.layers == set(range(12))
        assert [step.lag for step in ended.order] == [min(index, width - 1) for index in range(12)]


def test_a_sequence_starts_its_layers_in_sequence_and_a_slow_one_ends_later():
    router = Router(3, Policy("sequential", width=2))
    for layer in range(3):
        router.join(layer, [layer], 1.0, 0)
    first, second = router.submit(1, 0)
    assert first.layers == (0,)
    assert second.layers == (1,)

    (third,) = router.answered(second, 1)
    assert third.layers == (2,)
    assert third.position == 1

    assert router.answered(third, 2) == []
    (ended,) = router.answered(first, 3)
    # Layer 0 read the state from before the other two.
    assert ended.order == Order("1 2 0<2")


def test_a_layer_that_takes_too_long_runs_elsewhere_and_counts_once():
    router = Router(2, Policy("any", width=2, step_deadline=2.0))
    router.join("slow", [0], 1.0, 0)
    router.join("other", [1], 1.0, 0)
    router.join("spare", [0], 1.0, 0)

    submitted = router.submit(1, 0)
    (of_layer_0,) = (run for run in submitted if run.layers == (0,))
    (of_layer_1,) = (run for run in submitted if run.layers == (1,))
    assert router.answered(of_layer_1, 1) == []

    # The deadline of layer 0 has come. The other holder of it starts on the state that layer 1 has changed.
    (again,) = router.tick(2)
    assert again.layers == (0,)
    assert again.position == 1
    assert {again.node, of_layer_0.node} == {"slow", "spare"}

    assert router.answered(of_layer_0, 3) == []
    assert router.late == 1
    (ended,) = router.answered(again, 3)
    assert ended.order == Order("1 0")
    assert router.late == 1


def test_a_request_is_not_held_up_while_a_node_runs_some_of_it():
    """Its patience begins only when it runs nowhere any more."""
    router = Router(2, Policy("any", "skip", width=2, patience=1.0))
    router.join("node", [0, 1], 5.0, 0)
    (first,) = router.submit(1, 0)
    assert router.tick(4) == []
    (second,) = router.answered(first, 5)
    (ended,) = router.answered(second, 10)
    assert ended.missed == ()


def test_a_request_is_answered_in_time_with_what_has_come():
    router = Router(3, Policy("any", width=2, answer_by=2.0))
    for layer in range(2):
        router.join(layer, [layer], 1.0, 0)
    first, second = router.submit(1, 0)
    assert router.answered(first, 1) == []

    # Nobody holds layer 2, and the second node hasn't answered by then.
    assert router.next_time() == 2
    (ended,) = router.tick(2)
    assert ended.order == Order(first.layers)
    assert ended.missed == (*second.layers, 2)
    assert not ended.failed

    assert not router.is_current(second)
    assert router.answered(second, 3) == []
    assert router.late == 1


def test_what_would_end_too_late_does_not_start():
    """The slow node leaves the older request to the fast one, and runs the younger."""
    router = Router(2, Policy("any", answer_by=10.0))
    router.join("slow", [0], 4.0, 0)
    router.join("fast", [0], 1.0, 0)
    # Requests wait as long as both are suspected.
    router.suspect("slow", 0)
    router.suspect("fast", 0)
    router.submit(1, 0)
    router.submit(2, 5)

    # They are due at 10 and 15 s. At 7 s, the slow node would end the first of them at 11 s.
    (of_slow,) = router.recover("slow", 7)
    (of_fast,) = router.recover("fast", 7)
    assert of_slow.request == 2
    assert of_fast.request == 1


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
