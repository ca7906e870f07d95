"""Grouping layers that run side by side, against brute force."""

from itertools import combinations, pairwise

import pytest

from layershuffle.evaluation.grouping import exchanged, group, in_halves, joined, seconds_when_merged
from layershuffle.evaluation.search import climb
from layershuffle.orders.order import Order


def apart(orders):
    """Losses of orders: how far apart the layers of each group are, and a little for how late even layers run."""
    losses = []
    for order in orders:
        loss = 0.0
        for position, step in enumerate(order):
            layers = [unit.layer for unit in step.units]
            loss += sum((one - other) ** 2 for one, other in combinations(layers, 2))
            loss += 0.01 * sum(position for layer in layers if layer % 2 == 0)
        losses.append(loss)
    return losses


def test_the_cheapest_pair_is_joined_until_few_steps_are_left():
    path = list(group(Order("0 3 1 4"), apart, 2))

    assert [len(order) for order, _ in path] == [4, 3, 2]
    for (before, _), (after, loss) in pairwise(path):
        assert loss == min(apart(joined(before)))
        assert sorted(before.units) == sorted(after.units)
    last, _ = path[-1]
    assert set(last) == set(Order("(0+1) (3+4)"))

    # Two of three steps are joined, in the place of either.
    assert len(joined(Order("0 1 2"))) == 2 * 3
    assert Order("2 (0+1)") in joined(Order("0 2 1"))


def test_layers_are_exchanged_between_groups_and_with_those_left_out():
    order = Order("(0+1) 2")
    between_groups = [Order("(1+2) 0"), Order("(0+2) 1")]
    with_layer_7 = [Order("(1+7) 2"), Order("(0+7) 2"), Order("(0+1) 7")]
    assert set(exchanged(order, [0, 1, 2, 7])) == {*between_groups, *with_layer_7}

    def neighbours(order):
        return exchanged(order, range(8))

    *_, (best, loss) = climb(order, apart, 10, neighbours)
    assert loss == min(apart([best, *neighbours(best)]))
    assert loss < apart([order])[0]


def test_halves_of_a_group_run_one_after_the_other():
    assert in_halves(Order("(0+2) 1")) == Order("(0a+2a) (0f+2f) 1a 1f")


def test_merged_orders_are_timed(small, images):
    times = seconds_when_merged(small(), images[:1], [Order("0 1 2"), Order("(0+1+2)")], 2)
    assert len(times) == 2
    assert min(times) > 0


@pytest.mark.parametrize("steps", [4, 9])
def test_nothing_is_joined_where_there_are_few_steps_already(steps):
    assert [order for order, _ in group(Order("0 3 1 4"), apart, steps)] == [Order("0 3 1 4")]
