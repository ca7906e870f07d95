"""Who holds a layer, and who loads it when nobody does."""

import random

import pytest

from layershuffle.serving.holders import Holders, LayerHolders
from layershuffle.serving.node import Node


def test_a_holder_is_sampled_by_its_speed():
    """A node three times as fast is drawn three times as often."""
    slow = Node("slow", 0, [0], estimate=3.0)
    fast = Node("fast", 1, [0], estimate=1.0)
    gone = Node("gone", 2, [0], estimate=0.1)
    holders = LayerHolders()
    # What is there already isn't added again, and what is gone already isn't removed again.
    for node in (gone, slow, fast, slow):
        holders.add(node)
    holders.discard(gone)
    holders.discard(gone)
    assert gone not in holders
    assert sorted(node.key for node in holders.nodes) == ["fast", "slow"]

    rng = random.Random(0)
    draws = 1000
    sampled = [holders.sample(rng) for _ in range(draws)]
    standard_deviation = (0.75 * 0.25 / draws) ** 0.5
    assert sampled.count(fast) / draws == pytest.approx(0.75, abs=4 * standard_deviation)
    assert LayerHolders().sample(rng) is None


def test_a_lost_layer_is_loaded_by_the_node_with_the_fewest_layers_and_of_those_the_fastest():
    last = Node("last", 1, [1, 2], estimate=0.1)
    full = Node("full", 2, [0, 1], estimate=0.1)
    slow = Node("slow", 3, [0], estimate=3.0)
    fast = Node("fast", 4, [0], estimate=1.0)
    suspect = Node("suspect", 5, [0], estimate=0.1)
    suspect.suspected = True
    holders = Holders(3)
    for node in (last, full, slow, fast):
        holders.add(node)

    holders.remove(last)
    assert holders.lost == {2}  # layer 1 is held by another node, too
    assert holders.assign_lost_layers([suspect]) == []
    assert holders.assign_lost_layers([full, slow, fast, suspect]) == [fast]
    # It is loading now, so that nobody else needs to.
    assert holders.assign_lost_layers([full, slow, fast, suspect]) == []

    holders.loaded(fast, fast.to_load.popleft())
    holders.add(fast)
    assert holders.lost == set()
    assert holders.loading == {}
    assert list(fast.layers) == [0, 2]
