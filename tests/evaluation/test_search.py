"""Searching an order, against brute force and against the fit written out."""

import sys
from itertools import combinations, pairwise, permutations
from math import comb

import numpy as np
import pytest
import torch

from layershuffle.evaluation.search import climb, greedy, heavy_tail_exponents, scores_all, thin, well_trained_first
from layershuffle.orders.order import Order, sequential

COST = np.random.default_rng(0).random((5, 5))
"""What it costs to run a layer (row) at a position (column)."""


def loss_of(order):
    """The sum of the costs of its layers: a loss that is known for every order, whether it has all layers or not."""
    costs = [COST[step.units[0].layer, position] for position, step in enumerate(order)]
    return float(sum(costs))


def losses(orders):
    return [loss_of(order) for order in orders]


def test_greedy_appends_the_best_next_layer():
    path = list(greedy(sequential(5), losses))

    left = set(range(5))
    layers = []
    total = 0.0
    for position, (order, loss) in enumerate(path):
        cheapest = min(left, key=lambda layer: COST[layer, position])
        left.remove(cheapest)
        layers.append(cheapest)
        total += COST[cheapest, position]
        assert order == Order(layers)
        assert loss == pytest.approx(total)
    assert not left

    # An order that repeats a layer keeps its steps.
    order, _ = list(greedy(Order("0 1 0"), losses))[-1]
    assert sorted(order) == sorted(Order("0 0 1"))


def exchanged(order, one, other):
    """An order with the steps of two positions exchanged."""
    steps = list(order)
    steps[one], steps[other] = steps[other], steps[one]
    return Order(steps)


def test_climbing_ends_where_no_exchange_helps():
    start = Order("4 3 2 1 0")

    path = list(climb(start, losses, rounds=50))

    assert path[0] == (start, loss_of(start))
    for (before, loss_before), (after, loss_after) in pairwise(path):
        neighbours = [exchanged(before, one, other) for one, other in combinations(range(5), 2)]
        assert after in neighbours
        assert loss_after == min(losses(neighbours)) < loss_before

    last, loss = path[-1]
    best = min(loss_of(Order(layers)) for layers in permutations(range(5)))
    assert best <= loss <= loss_of(start)
    assert list(climb(last, losses, rounds=5)) == [(last, loss)]

    assert len(list(climb(start, losses, rounds=1))) == 2  # the start, and one round


def exponent(eigenvalues):
    """Clauset, Shalizi and Newman's fit of a power law's tail (arXiv 0706.1062), by trying every beginning."""
    ascending = np.sort(eigenvalues)
    fits = []
    for start in range(len(ascending) - 1):
        tail = ascending[start:]
        n = len(tail)
        alpha = 1 + n / np.log(tail / tail[0]).sum()
        # The distance of Kolmogorov and Smirnov, from the steps of the tail's cumulative distribution.
        fitted = 1 - (tail / tail[0]) ** (1 - alpha)
        from_below = np.abs(np.arange(n) / n - fitted).max()
        from_above = np.abs(np.arange(1, n + 1) / n - fitted).max()
        fits.append((max(from_below, from_above), alpha))
    _distance, alpha = min(fits)
    return alpha


def test_exponents_are_the_fits_of_the_layers_matrices(small):
    pytest.importorskip("powerlaw")
    matrices = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    model = small(depth=2)
    with torch.no_grad():  # a spectrum with a clear tail
        for block in model.vit.blocks:
            for name in matrices:
                weight = block.get_submodule(name).weight
                left, singular_values, right = torch.linalg.svd(weight, full_matrices=False)
                heavy_tailed = torch.linspace(1, 0.02, len(singular_values)) ** -0.9
                weight.copy_(left @ torch.diag(heavy_tailed) @ right)

    exponents = heavy_tail_exponents(model)

    expected = []
    for name in matrices:
        weight = model.vit.blocks[1].get_submodule(name).weight.detach()
        eigenvalues = np.linalg.eigvalsh((weight.T @ weight).double().numpy())
        largest = eigenvalues[-32:]  # all but the zeros of a matrix that is wider than high
        expected.append(exponent(largest))
    assert exponents[1] == pytest.approx(np.mean(expected), rel=1e-4)


def test_the_best_trained_come_first():
    assert well_trained_first([2.5, 4.0, 1.9, 3.0], sequential(4)) == Order("2 0 3 1")


@pytest.mark.parametrize(
    ("base_order", "expected"),
    [("0 1 2 0 1 2", "2 2 0 0 1 1"), ("1a 0a 1f 0f", "0a 0f 1a 1f"), ("1 0 (1|2)", "0 (1|2) 1")],
)
def test_the_best_trained_steps_of_an_order_come_first(base_order, expected):
    assert well_trained_first([2.5, 4.0, 1.9], Order(base_order)) == Order(expected)


def test_a_missing_extra_is_named(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "powerlaw", None)
    with pytest.raises(ValueError, match=r"pip install 'layershuffle\[spectra\]'"):
        heavy_tail_exponents(small())


@pytest.mark.parametrize(("keep", "beam", "exact"), [(2, 8, True), (1, 3, False)])
def test_thinning_keeps_the_best_choice_of_each_length(monkeypatch, keep, beam, exact):
    base_order = Order("4 0 3 1 2")
    lengths = range(5, keep - 1, -1)
    if not exact:
        monkeypatch.setattr("layershuffle.evaluation.search.scores_all", lambda base_order, keep: False)
    scored = []  # the orders of each length

    def watched(orders):
        scored.append(orders)
        return losses(orders)

    kept = list(thin(base_order, watched, keep, beam))

    assert [len(order) for order, _ in kept] == list(lengths)
    for order, loss in kept:
        assert sorted(order, key=list(base_order).index) == list(order)
        assert loss == loss_of(order)
        best = min(loss_of(Order(steps)) for steps in combinations(base_order, len(order)))
        assert loss >= best
        if exact:
            assert loss == best

    for orders in scored:
        assert len(orders) == len(set(orders))  # none is scored twice
    if exact:
        assert [len(orders) for orders in scored] == [comb(5, length) for length in lengths]
    else:  # the best of each length go on, as many as ``beam``
        for before, after in pairwise(scored):
            shortened = set()
            for order in sorted(before, key=loss_of)[:beam]:
                for left_out in range(len(order)):
                    shortened.add(order[:left_out] + order[left_out + 1 :])
            assert set(after) == shortened


def test_all_choices_of_twelve_layers_are_scored_and_not_those_of_more():
    assert scores_all(sequential(12), 1)
    assert not scores_all(sequential(13), 1)
    assert scores_all(sequential(24), 21)
