"""Who holds a layer, and who loads it when nobody does."""

import random

import pytest

from layershuffle.serving.holders import Holders, LayerHolders
from layershuffle.serving.node import Node


def nodes(*seconds):
    return [Node(key, key, [0], estimate) for key, estimate in enumerate(seconds)]


def test_a_holder_is_sampled_by_its_speed():
    holders = LayerHolders()
    slow, fast, gone = nodes(3.0, 1.0, 0.1)
    for node in (gone, slow, fast, slow):
        holders.add(node)
    holders.discard(gone)
    holders.discard(gone)
    assert gone not in holders
    assert sorted(node.key for node in holders.nodes) == [0, 1]
    rng = random.Random(0)
    sampled = [holders.sample(rng) for _ in range(1000)]
    assert sampled.count(fast) / 1000 == pytest.approx(0.75, abs=4 * (0.75 * 0.25 / 1000) ** 0.5)
    assert LayerHolders().sample(rng) is None


def test_a_lost_layer_is_loaded_by_the_node_with_the_fewest_layers_and_of_those_the_fastest():
    holders = Holders(3)
    last = Node("last", 1, [1, 2], 0.1)
    full, slow, fast, suspect = (Node(name, 2, [0], seconds) for name, seconds in zip("fsqx", (0.1, 3.0, 1.0, 0.1)))
    full.layers[1] = None
    suspect.suspected = True
    for node in (last, full, slow, fast):
        holders.add(node)
    holders.remove(last)
    assert holders.lost == {2}  # layer 1 is held by another node, too
    assert holders.assign_lost_layers([suspect]) == []
    assert holders.assign_lost_layers([full, slow, fast, suspect]) == [fast]
    assert holders.assign_lost_layers([full, slow, fast, suspect]) == []
    holders.loaded(fast, fast.to_load.popleft())
    holders.add(fast)
    assert (holders.lost, holders.loading, list(fast.layers)) == (set(), {}, [0, 2])
