"""Layers side by side: summed groups, runs without waiting, their samplers and protocols."""

from collections import Counter

import pytest
from helpers import by_variant

from layershuffle.errors import UserError
from layershuffle.orders import FirstLayers, GrowingDepth, RandomGroups, RandomSchedule, RandomSubset, ShuffleDrop
from layershuffle.orders.named import parse_order, permutation, sequential
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import trials
from layershuffle.orders.width import grouped, without_waiting


def test_groups_differ_by_one_at_most():
    assert grouped(Order("3 1 0 2 4"), 2) == Order("(1+3) (0+2+4)")
    assert grouped(Order("3 1 0 2 4"), 5) == Order("3 1 0 2 4")
    assert grouped(Order("3 1 0"), 1, averaged=True) == Order("(0|1|3)")
    assert grouped(Order("3 1 0"), 2, halves=True) == Order("3a 3f (0a+1a) (0f+1f)")
    assert grouped(Order(), 1) == Order()
    assert parse_order("grouped(2)", sequential(4)) == Order("(0+1) (2+3)")
    for groups in (0, 4):
        with pytest.raises(UserError, match=f"{groups} groups"):
            grouped(Order("3 1 0"), groups)
    with pytest.raises(UserError, match="whole layers"):
        grouped(Order("3a 1"), 1)


def test_nothing_waits_if_all_are_in_flight():
    order = permutation(12, seeded(1))
    assert without_waiting(order, 1, seeded(2)) == order
    together = without_waiting(order, 12, seeded(2))
    assert together.positions == [0] * 12
    assert together.layers == order.layers


@pytest.mark.parametrize("in_flight", [2, 3, 6])
def test_what_is_in_flight_is_bounded(in_flight):
    for number in range(50):
        order = permutation(12, seeded(number))
        schedule = without_waiting(order, in_flight, seeded("durations", number)).check(12)
        assert sorted(unit.layer for unit in schedule.units) == list(range(12))
        # The first few start together, on the embedded images.
        assert schedule.positions.count(0) >= in_flight
        # Steps take times from 0.5 to 1.5. While one runs, each of the others ends three times at most.
        assert 1 <= schedule.longest_lag <= 3 * (in_flight - 1)

    with pytest.raises(UserError, match="not 0"):
        without_waiting(Order("0 1"), 0, seeded(0))
    with pytest.raises(UserError, match="0 1<1"):
        without_waiting(Order("0 1<1"), 1, seeded(0))


def test_random_groups_are_uniform_in_their_number():
    sampled = [RandomGroups().sample_step(4, 0, step) for step in range(4000)]
    assert all(order.layers == {0, 1, 2, 3} for order in sampled)

    counts = Counter(len(order) for order in sampled)
    assert counts.keys() == {1, 2, 3, 4}
    # Each number has a binomial count of probability 1/4. Six standard deviations of it are allowed.
    standard_deviation = (4000 * 1 / 4 * 3 / 4) ** 0.5
    for count in counts.values():
        assert abs(count - 1000) < 6 * standard_deviation

    at_least_three = RandomGroups(g_min=3)
    assert {len(at_least_three.sample_step(4, 0, step)) for step in range(100)} == {3, 4}
    halves = RandomGroups(g_min=9, halves=True).sample_step(2, 0, 0)
    assert sorted(map(str, halves)) == ["0a", "0f", "1a", "1f"]
    assert "|" in str(RandomGroups(averaged=True).sample_step(4, 0, 1))
    with pytest.raises(UserError, match="RandomGroups"):
        RandomGroups(g_min=0)


def test_any_width_samples_subsets_too():
    sampled = [RandomGroups(layers=RandomSubset(k_min=2)).sample_step(4, 0, step) for step in range(600)]
    assert {len(order.layers) for order in sampled} == {2, 3, 4}
    steps_of_two_layers = {len(order) for order in sampled if len(order.layers) == 2}
    assert steps_of_two_layers == {1, 2}


def test_random_schedules():
    sampler = RandomSchedule(in_flight=3)
    lags = [sampler.sample_step(6, 0, step).longest_lag for step in range(300)]
    assert lags.count(0) > 50  # A third of them has one layer in flight.
    assert max(lags) > 1

    sampler = RandomSchedule(layers=RandomSubset())
    depths = {len(sampler.sample_step(6, 0, step)) for step in range(100)}
    assert depths == set(range(1, 7))

    with pytest.raises(UserError, match="RandomSchedule"):
        RandomSchedule(in_flight=0)


def test_groups_of_growing_depth_grow_and_are_validated_at_full_depth():
    sampler = RandomGroups(layers=GrowingDepth(k0=2, end=0.5))
    for progress, layers in ((0.0, 2), (0.25, 4), (0.5, 6), (1.0, 6)):
        sampled = [sampler.sample_step(6, 0, step, progress=progress) for step in range(100)]
        assert {len(order.layers) for order in sampled} == {layers}
        assert {len(order) for order in sampled} == set(range(1, layers + 1))
    assert sampler.at_validation(6, seeded(0), 0.0).layers == set(range(6))


def test_side_by_side_keeps_what_the_other_sampler_leaves_out():
    assert RandomGroups(layers=FirstLayers(2)).base_order(6) == Order("0 1")

    # At some step, no layer is left.
    few = ShuffleDrop(0.95)
    sampled = [RandomGroups(layers=few).sample_step(2, 0, step) for step in range(20)]
    assert Order() in sampled
    step_without_layers = sampled.index(Order())
    assert RandomSchedule(layers=few).sample_step(2, 0, step_without_layers) == Order()


def test_grouped_protocol():
    orders = by_variant("grouped", 12, random_orders=3, halves=True)
    assert {steps for steps, _ in orders} == {1, 2, 3, 4, 6, 12}
    assert orders[4, "in sequence"] == [Order("(0+1+2) (3+4+5) (6+7+8) (9+10+11)")]
    assert [len(order) for order in orders[4, "random"]] == [4] * 3
    assert [len(order) for order in orders[4, "random halves"]] == [8] * 3
    assert [len(order.layers) for order in orders[4, "random, half left out"]] == [6] * 3
    assert (12, "random, half left out") not in orders

    averaged = by_variant("grouped", 4, random_orders=1, steps=(2,), combine="mean")
    assert averaged[2, "in sequence, averaged"] == [Order("(0|1) (2|3)")]

    # Random orders don't depend on the other numbers of steps that are asked for.
    one_number = by_variant("grouped", 4, random_orders=1, steps=(2,))
    all_numbers = by_variant("grouped", 4, random_orders=1)
    assert one_number[2, "random"] == all_numbers[2, "random"]

    with pytest.raises(UserError, match="5 groups"):
        trials(["grouped"], 4, steps=(5,))


def test_asynchronous_protocol():
    orders = by_variant("asynchronous", 12, random_orders=3)
    assert {running for running, _ in orders} == {1, 2, 3, 4, 6}
    assert all(order.longest_lag == 0 for order in orders[1, "random"])
    assert all(order.positions.count(0) >= 4 for order in orders[4, "random"])
    assert all(len(order) == 6 for order in orders[4, "random, half left out"])
