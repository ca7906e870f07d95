"""The simulator against results that can be worked out by hand."""

import hashlib
import json
import math
import os
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import get_args

import pytest
from helpers import fails

from layershuffle import Order, UserError, progress_lines
from layershuffle.commands.simulate import simulate_command
from layershuffle.orders.recorded import MAX_LINE, read_orders
from layershuffle.results.figures import COLOURS
from layershuffle.serving.comparison import compare, figure, table
from layershuffle.serving.ideal import ideal_throughput
from layershuffle.serving.policy import OnLoss, Policy, Routing
from layershuffle.serving.scenario import Scenario
from layershuffle.serving.simulator import simulate

STEADY = {"spread": 0.0, "noise": 0.0, "latency": 0.0, "lifetime": 0.0, "seconds": 1.0}
"""Nodes that take a second for each layer, messages that take no time, and nothing that depends on chance."""
PATIENT = {"step_deadline": 120.0, "request_deadline": 3600.0}
"""The deadlines of a policy that waits long for a node."""


def median_latency(outcome):
    """The median of the seconds from the submission of a request to its end."""
    median, _, _ = outcome.latency
    return median


def test_the_ideal_is_that_of_the_scarcest_layer():
    assert ideal_throughput({(0,): 2.0, (1,): 1.2}, 2) == pytest.approx(1.2)
    # The node that holds both layers spends its 3 layers a second so that both run equally often.
    assert ideal_throughput({(0,): 1.0, (0, 1): 3.0}, 2) == pytest.approx(2.0)
    assert ideal_throughput({(0, 1): 4.0}, 2) == pytest.approx(2.0)
    # Nobody holds the third layer.
    assert ideal_throughput({(0, 1): 4.0}, 3) == 0


def test_one_node_without_chance_does_what_arithmetic_says():
    """A node of 3 layers ends a request every 3 s; with 2 in flight, each waits for the one before it."""
    scenario = Scenario(nodes=1, layers=3, layers_per_node=3, window=2, duration=400, **STEADY)
    outcome = simulate(scenario, Policy())
    assert outcome.throughput == pytest.approx(1 / 3, rel=0.02)
    assert outcome.ideal == pytest.approx(1 / 3)
    # The median, the 95th and the 99th percentile.
    assert outcome.latency == (6.0, 6.0, 6.0)
    assert outcome.missed == 0
    assert outcome.failed == 0
    assert outcome.late == 0


def test_messages_cost_what_visits_save():
    """With a second for a message and a second for a layer, a visit of all 3 layers takes 4 s and not 6."""
    scenario = Scenario(nodes=1, layers=3, layers_per_node=3, duration=20_000, **STEADY)
    scenario = replace(scenario, latency=1.0)
    one_visit = simulate(scenario, Policy(visit=3))
    three_visits = simulate(scenario, Policy(visit=1))
    assert one_visit.throughput == pytest.approx(1 / 4, rel=0.05)
    assert three_visits.throughput == pytest.approx(1 / 6, rel=0.05)


def test_what_travels_costs_what_its_size_and_the_link_say():
    """A state of 125 kB is a megabit: at 1 Mbit/s it is there and back in 2 s. The delay and the step take 1 s each."""
    # A window of one request for all twelve nodes, so that it never waits for another.
    scenario = Scenario(nodes=12, window=1 / 12, delay=1.0, bandwidth=1.0, kilobytes=125, duration=4000, **STEADY)
    one_at_a_time = simulate(scenario, Policy())
    assert median_latency(one_at_a_time) == 12 * 4
    four_at_a_time = simulate(scenario, Policy(width=4))
    assert median_latency(four_at_a_time) == 3 * 4

    with_a_small_state = simulate(replace(scenario, kilobytes=12.5), Policy())
    assert median_latency(with_a_small_state) == pytest.approx(12 * 2.2)


def test_requests_that_come_at_a_rate_wait_for_nobody():
    """One node of one layer of a second, at half load: as queueing theory has it for M/D/1, 1 + 0.5 / (2 * 0.5) s."""
    scenario = Scenario(nodes=1, layers=1, rate=0.5, duration=40_000, **STEADY)
    seconds = []
    outcome = simulate(scenario, Policy(), on_ended=lambda ended, _: seconds.append(ended.seconds))
    assert outcome.throughput == pytest.approx(0.5, rel=0.03)
    assert fmean(seconds) == pytest.approx(1.5, rel=0.05)


def test_several_layers_at_a_time_take_less_time_and_no_throughput():
    """Width costs no work: as many steps run for each request, through kills as well."""
    scenario = Scenario(nodes=24, delay=0.05, duration=600, rate=3.2, kills=2, **STEADY)
    scenario = replace(scenario, seconds=0.5, noise=0.2)
    one = simulate(scenario, Policy(width=1))
    four = simulate(scenario, Policy(width=4))
    assert four.throughput > 0.97 * one.throughput
    assert median_latency(four) < 0.7 * median_latency(one)


def test_every_answer_is_in_time():
    scenario = Scenario(nodes=24, lifetime=300, absence=100, rate=2.0, duration=600, seconds=1.0)
    requests = []
    policy = Policy(width=4, answer_by=6.0)
    outcome = simulate(scenario, policy, on_ended=lambda ended, _: requests.append(ended))
    assert max(ended.seconds for ended in requests) == pytest.approx(6.0)
    assert not any(ended.failed for ended in requests)
    assert len({ended.request for ended in requests}) == len(requests)
    # Some requests miss some of their twelve layers, whose answers come too late.
    assert 0 < outcome.missed < 12
    assert outcome.late > 0


def test_equal_nodes_that_noise_disturbs_do_more_in_any_order():
    scenario = Scenario(nodes=12, duration=3000, **STEADY)
    scenario = replace(scenario, noise=0.5)
    in_any_order = simulate(scenario, Policy("any"))
    in_sequence = simulate(scenario, Policy("sequential"))
    assert in_any_order.share > 1.03 * in_sequence.share


def test_a_burst_fills_the_nodes_in_any_order_and_is_drawn_out_in_sequence():
    """12 requests on 12 nodes of one layer: in sequence the last one begins after 11 steps, and takes 12."""
    scenario = Scenario(nodes=12, burst=12, **STEADY)
    outcomes = {routing: simulate(scenario, Policy(routing)) for routing in ("any", "sequential", "path")}
    # The time until the last of the twelve ends.
    makespan = {routing: 12 / outcome.throughput for routing, outcome in outcomes.items()}
    assert makespan["sequential"] == makespan["path"] == pytest.approx(12 + 11)
    assert 12 <= makespan["any"] <= 15
    assert {outcome.steps for outcome in outcomes.values()} == {12 * 12}
    assert outcomes["any"].ideal == pytest.approx(1)


def test_nodes_that_are_killed_stay_away():
    """The first of two nodes is killed after half of the measured time; the other then runs both layers."""
    scenario = Scenario(nodes=2, layers=2, kills=1, duration=4000, loading=0, detection=0, **STEADY)
    outcome = simulate(scenario, Policy())
    # Two nodes end a request each second, and one node every two seconds.
    assert outcome.throughput == pytest.approx((1 + 0.5) / 2, rel=0.01)
    assert outcome.share == pytest.approx(1, rel=0.01)

    # Here nobody loads the layer of the node that was killed.
    skipping = simulate(scenario, Policy("sequential", "skip", patience=3))
    assert 0 < skipping.missed < 1


def test_nodes_that_stop_are_noticed_by_the_deadline_of_their_step():
    """One of two nodes stops at 1000 s. A request waits 10 s for it, until the other node loads its layer."""
    scenario = Scenario(nodes=2, layers=2, stopped=1, window=0.5, duration=4000, loading=0, detection=0, **STEADY)
    policy = Policy(step_deadline=10)
    outcome = simulate(scenario, policy)
    assert outcome.late == 0
    assert median_latency(outcome) == 2
    # 3000 s are measured. But for the 10 s, a request ends every 2 s, since one is in flight at a time.
    assert outcome.throughput == pytest.approx((3000 - 10) / 2 / 3000, abs=1 / 3000)

    # A node that is noticed to be killed keeps no request waiting.
    killed = simulate(replace(scenario, stopped=0, kills=1), policy)
    assert killed.throughput > outcome.throughput


def test_the_slowest_node_sets_the_pace():
    """The first node of twelve takes four times as long as the others."""
    outcome = simulate(Scenario(nodes=12, straggler=4, duration=2000, **STEADY), Policy())
    assert outcome.throughput == pytest.approx(1 / 4, rel=0.02)
    assert outcome.ideal == pytest.approx(1 / 4)


def test_a_layer_that_is_always_away_has_no_share_of_an_ideal():
    scenario = Scenario(layers=1, duration=10, **STEADY)
    # It stays for a microsecond, and then is away for longer than the simulation lasts.
    scenario = replace(scenario, lifetime=1e-6, absence=1e9)
    outcomes = compare(scenario, [1], {"any-skip": Policy("any", "skip")}, range(2))
    of_first_seed, _ = outcomes[1, "any-skip"]
    assert math.isnan(of_first_seed["share"])
    header, (row,) = table(outcomes)
    assert row[header.index("% of ideal")] == "no ideal"


def test_nodes_that_come_and_go():
    """Nodes are there for the share of the time that was asked for. Lost layers are loaded elsewhere, or skipped."""
    scenario = Scenario(
        nodes=24,
        layers=4,
        seconds=1,
        spread=0,
        lifetime=60,
        absence=20,
        detection=1,
        loading=2,
        duration=600,
    )
    ideals = []
    shares = []
    for seed in range(3):
        outcome = simulate(scenario, Policy("any", **PATIENT), seed)
        ideals.append(outcome.ideal)
        shares.append(outcome.share)
        assert outcome.missed == 0
        assert outcome.failed == 0
    # Nodes are there for 60 s of 80, and each runs a layer in a second, of which a request has four.
    assert fmean(ideals) == pytest.approx(24 * 0.75 / 4, rel=0.1)
    assert 0.7 < fmean(shares) < 1

    few = Scenario(nodes=8, layers=8, seconds=1, lifetime=100, absence=100, duration=2000)
    loading = simulate(few, Policy("any", **PATIENT))
    # The ideal counts the layers that nodes have loaded besides those with which they came.
    assert loading.share < 1.02
    skipping = simulate(few, Policy("sequential", "skip", max_missed=8, patience=5, **PATIENT))
    assert 1 < skipping.missed < 8


def test_the_same_seed_gives_the_same_nodes_to_every_policy():
    scenario = Scenario(nodes=48, duration=400, lifetime=7200)
    in_any_order = simulate(scenario, Policy("any", **PATIENT), seed=1)
    again = simulate(scenario, Policy("any", **PATIENT), seed=1)
    in_a_chain = simulate(scenario, Policy("chain", **PATIENT), seed=1)
    other_nodes = simulate(scenario, Policy("any", **PATIENT), seed=2)

    assert in_any_order == again
    assert in_any_order.ideal == in_a_chain.ideal
    assert in_any_order.ideal != other_nodes.ideal
    assert in_any_order.throughput != in_a_chain.throughput


def test_the_command_compares_and_records(tmp_path, capsys):
    record = tmp_path / "out" / "simulation.json"
    scenario = ["--duration", "300", "--layers", "4"]
    two_seeds = ["--seeds", "0", "1"]
    compared = ["--cluster_sizes", "4", "8", "--policies", "any", "chain"]
    simulate_command([*scenario, *two_seeds, *compared, "--output", str(record)])

    # The table has a row for each number of nodes and policy.
    printed = capsys.readouterr().out
    assert printed.count("chain") == 2
    assert record.with_suffix(".png").is_file()
    outcomes = json.loads(record.read_text())["outcomes"]
    compared_in_file = [(outcome["nodes"], outcome["policy"]) for outcome in outcomes]
    assert compared_in_file == [(4, "any"), (4, "chain"), (8, "any"), (8, "chain")]
    for outcome in outcomes:
        assert len(outcome["seeds"]) == 2

    log = tmp_path / "events.jsonl"
    one_policy = ["--cluster_sizes", "4", "--policies", "any"]
    simulate_command([*scenario, *two_seeds, *one_policy, "--event_log", str(log)])
    events = [json.loads(line) for line in log.read_text().splitlines()]
    answered = [event for event in events if not event["failed"]]
    orders = read_orders(str(log))
    assert sum(orders.values()) == len(answered)
    assert len(orders) > 1
    assert all(order.layers == {0, 1, 2, 3} for order in orders)

    # A seed shows the same alone as among others.
    simulation = simulate_command([*scenario, *one_policy, "--seeds", "1"])
    (alone,) = simulation.outcomes[4, "any"]
    _, among_others = outcomes[0]["seeds"]
    assert alone["throughput"] == among_others["throughput"]


def test_what_cannot_be_simulated_is_refused(tmp_path, capsys):
    assert "can't run a model" in fails(capsys, simulate_command, "--cluster_sizes", "5")
    assert "seconds can't be -1.0" in fails(capsys, simulate_command, "--seconds", "-1")
    assert "straggler can't be 0.0" in fails(capsys, simulate_command, "--straggler", "0")
    for name in ("spread", "noise"):
        assert name in fails(capsys, simulate_command, f"--{name}=1e9")
    assert "killed or stopped (3)" in fails(capsys, simulate_command, "--kills", "3", "--cluster_sizes", "12")
    assert "--event_log" in fails(capsys, simulate_command, "--event_log", str(tmp_path / "log"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "no order"),
        ("{}\n", "line 1"),
        ("[1]\n", "line 1"),
        ("nonsense\n", "line 1"),
        ("\x00\n", "line 1"),
        ('{"event": "ended", "order": 5, "failed": false}\n', "log is not .*5 is not an order"),
        (f'{{"event": "joined"}}\n{" " * MAX_LINE}\n', "line 2"),
    ],
)
def test_a_file_that_is_no_event_log(tmp_path, content, why):
    path = tmp_path / "log"
    path.write_text(content)
    with pytest.raises(UserError, match=why):
        read_orders(str(path))


def test_a_log_that_is_a_pipe_into_which_nobody_writes_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "log")
    with pytest.raises(UserError, match="no order"):
        read_orders(str(tmp_path / "log"))


def test_how_far_simulations_are_is_told_while_they_run():
    told = []
    totals = set()

    def advance(done, total):
        told.append(done)
        totals.add(total)

    scenario = Scenario(nodes=1, layers=3, layers_per_node=3, duration=400, **STEADY)
    compare(scenario, [1, 2], {"any": Policy()}, [0, 1], advance=advance)
    # Two numbers of nodes with two seeds.
    assert totals == {4}
    assert told == sorted(told)
    assert {1, 2, 3, 4} <= set(told)
    # It is told after each request that ends, and not after each simulation alone.
    assert len(set(told)) > 100


def test_without_a_terminal_lines_tell_how_far_the_command_is(monkeypatch, caplog):
    # Each time that the clock is read, ten seconds have passed.
    now = iter(range(0, 100_000, 10))
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: float(next(now)))
    args = ["--policies=any", "--cluster_sizes", "12", "--seeds", "0", "1", "--duration=600"]
    with caplog.at_level("INFO", "layershuffle"):
        simulate_command(args)
    assert any("of 2 simulations" in record.getMessage() for record in caplog.records)


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "log"
    line = json.dumps({"event": "ended", "order": "1 0", "failed": False})
    path.write_text(f'{line}\n{{"event": "joined"}}\n{line}\n{line[:20]}')
    assert read_orders(str(path)) == {Order([1, 0]): 2}


# All that ended in a scenario has the SHA-256 that it had before requests could be at several nodes at a time. Only a
# change that is meant to change routing or simulation may change these numbers.
EARLIER = {
    "volunteers": (Scenario(nodes=16, duration=500), "4092eceab143a4b4"),
    "several layers": (
        Scenario(nodes=10, layers_per_node=3, lifetime=300, absence=100, duration=500),
        "79e0060ac0092a05",
    ),
    "kills": (
        Scenario(nodes=14, lifetime=0, kills=5, seconds=1.0, duration=120, layers_per_node=2),
        "7c3715c21403f685",
    ),
    "burst": (Scenario(nodes=24, lifetime=0, burst=36), "48f5545ec6e3088e"),
    "stragglers": (
        Scenario(nodes=18, straggler=8, window=2, lifetime=600, noise=0.5, duration=400),
        "e53956ef1af3c8db",
    ),
}
"""Scenarios, each with the first digits of the SHA-256 of how its requests ended."""


@pytest.mark.parametrize("name", EARLIER)
def test_with_a_width_of_1_every_event_is_as_it_was(name):
    scenario, expected = EARLIER[name]
    digest = hashlib.sha256()

    def on_ended(ended, now):
        line = f"{ended.request} {ended.order} {ended.missed} {ended.seconds:.6f} {ended.failed} {now:.6f}\n"
        digest.update(line.encode())

    for routing, on_loss, visit in product(get_args(Routing), get_args(OnLoss), (1, 2)):
        policy = Policy(
            routing,
            on_loss,
            max_missed=4,
            patience=10.0,
            step_deadline=30.0,
            request_deadline=400.0,
            visit=visit,
        )
        simulate(scenario, policy, seed=0, on_ended=on_ended)
    assert digest.hexdigest()[:16] == expected


def test_more_policies_than_colours_are_all_drawn():
    policies = {f"any-{number}": Policy() for number in range(len(COLOURS) + 1)}
    outcomes = compare(Scenario(layers=2, duration=20, **STEADY), [4], policies, [0])
    drawn = figure(outcomes)
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == list(policies)
    assert len({line.get_color() for line in legend.get_lines()}) == len(COLOURS)
