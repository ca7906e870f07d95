"""Searching an order, against brute force and against the fit written out."""

from itertools import combinations, pairwise, permutations
from math import comb

import numpy as np
import pytest
import torch

from layershuffle.evaluation.search import climb, greedy, heavy_tail_exponents, scores_all, thin, well_trained_first
from layershuffle.orders.order import Order, sequential

COST = np.random.default_rng(0).random((5, 5))


def losses(orders):
    """How dear it is to run a layer at a position: known for every order, whole or not."""
    return [float(sum(COST[step.units[0].layer, at] for at, step in enumerate(order))) for order in orders]


def test_greedy_appends_the_best_next_layer():
    left = set(range(5))
    by_hand = []
    total = 0.0
    path = list(greedy(sequential(5), losses))
    for position, (order, loss) in enumerate(path):
        best = min(left, key=lambda layer: COST[layer, position])
        left.remove(best)
        by_hand.append(best)
        total += COST[best, position]
        assert order == Order(by_hand)
        assert loss == pytest.approx(total)
    assert sorted(path[-1][0]) == list(sequential(5))
    (repeated, _) = list(greedy(Order("0 1 0"), losses))[-1]
    assert sorted(repeated) == sorted(Order("0 0 1"))


def test_climbing_ends_where_no_exchange_helps():
    path = list(climb(Order("4 3 2 1 0"), losses, rounds=50))
    assert path[0] == (Order("4 3 2 1 0"), losses([Order("4 3 2 1 0")])[0])
    for (before, dearer), (after, cheaper) in pairwise(path):
        assert sum(a != b for a, b in zip(before, after)) == 2
        swaps = [
            Order([before[j] if at == i else before[i] if at == j else step for at, step in enumerate(before)])
            for i in range(5)
            for j in range(i)
        ]
        assert cheaper == min(losses(swaps)) < dearer
    last, loss = path[-1]
    best = min(losses([Order(order) for order in permutations(range(5))]))
    assert best <= loss <= path[0][1]
    assert list(climb(last, losses, rounds=5)) == [(last, loss)]
    assert len(list(climb(Order("4 3 2 1 0"), losses, rounds=1))) == 2


def exponent(eigenvalues):
    """Clauset, Shalizi and Newman's fit of a power law's tail (arXiv 0706.1062), by trying every beginning."""
    x = np.sort(eigenvalues)
    best = (np.inf, 0.0)
    for start in range(len(x) - 1):
        tail = x[start:]
        alpha = 1 + len(tail) / np.log(tail / tail[0]).sum()
        fitted = 1 - (tail / tail[0]) ** (1 - alpha)
        n = len(tail)
        distance = max(np.abs(np.arange(n) / n - fitted).max(), np.abs(np.arange(1, n + 1) / n - fitted).max())
        best = min(best, (distance, alpha))
    return best[1]


def test_exponents_are_the_fits_of_the_layers_matrices(small):
    pytest.importorskip("powerlaw")
    model = small(depth=2)
    with torch.no_grad():  # a spectrum with a clear tail
        for block in model.vit.blocks:
            for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
                weight = block.get_submodule(name).weight
                u, s, v = torch.linalg.svd(weight, full_matrices=False)
                weight.copy_(u @ torch.diag(torch.linspace(1, 0.02, len(s)) ** -0.9) @ v)
    exponents = heavy_tail_exponents(model)
    block = model.vit.blocks[1]
    weights = [block.attn.qkv.weight, block.attn.proj.weight, block.mlp.fc1.weight, block.mlp.fc2.weight]
    by_hand = [exponent(np.linalg.eigvalsh((w.T @ w).detach().double().numpy())[-32:]) for w in weights]
    assert exponents[1] == pytest.approx(np.mean(by_hand), rel=1e-4)


def test_the_best_trained_come_first():
    assert well_trained_first([2.5, 4.0, 1.9, 3.0], sequential(4)) == Order("2 0 3 1")


@pytest.mark.parametrize(
    ("base_order", "expected"),
    [("0 1 2 0 1 2", "2 2 0 0 1 1"), ("1a 0a 1f 0f", "0a 0f 1a 1f"), ("1 0 (1|2)", "0 (1|2) 1")],
)
def test_the_best_trained_steps_of_an_order_come_first(base_order, expected):
    assert well_trained_first([2.5, 4.0, 1.9], Order(base_order)) == Order(expected)


def test_a_missing_extra_is_named(small, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "powerlaw", None)
    with pytest.raises(ValueError, match=r"pip install 'layershuffle\[spectra\]'"):
        heavy_tail_exponents(small())


@pytest.mark.parametrize(("keep", "beam", "exact"), [(2, 8, True), (1, 3, False)])
def test_thinning_keeps_the_best_choice_of_each_length(monkeypatch, keep, beam, exact):
    base_order, scored = Order("4 0 3 1 2"), []
    if not exact:
        monkeypatch.setattr("layershuffle.evaluation.search.scores_all", lambda base_order, keep: False)

    def counted(orders):
        scored.append(orders)
        return losses(orders)

    found = list(thin(base_order, counted, keep, beam))
    best = {
        length: min(losses([Order(steps) for steps in combinations(base_order, length)]))
        for length in range(keep, len(base_order) + 1)
    }
    assert [len(order) for order, _ in found] == sorted(best, reverse=True)
    for order, loss in found:
        assert sorted(order, key=list(base_order).index) == list(order)
        assert loss == losses([order])[0] >= best[len(order)]
        assert loss == best[len(order)] or not exact
    assert [len(orders) for orders in scored] == [len(set(orders)) for orders in scored]
    if exact:
        assert [len(orders) for orders in scored] == [comb(5, length) for length in range(5, keep - 1, -1)]
    else:  # the three best of each length go on
        for before, after in pairwise(scored):
            went_on = sorted(before, key=lambda order: losses([order])[0])[:beam]
            assert set(after) == {order[:at] + order[at + 1 :] for order in went_on for at in range(len(order))}


def test_all_choices_of_twelve_layers_are_scored_and_not_those_of_more():
    assert scores_all(sequential(12), 1)
    assert not scores_all(sequential(13), 1)
    assert scores_all(sequential(24), 21)
