"""Means over orders and seeds, and their intervals."""

import itertools
import math
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest
from example_results import results, score

from layershuffle.results import (
    Score,
    estimate,
    summarise,
)


def test_summaries():
    values = [0.5, 0.7, 0.6, 0.9]
    summary = summarise(values)
    assert (summary.n, summary.min, summary.max) == (4, 0.5, 0.9)
    assert summary.mean == pytest.approx(fmean(values))
    assert summary.std == pytest.approx(stdev(values))
    assert summarise([0.5]).std is None


def draws(accuracies, seed=0, images=10**9):
    """A model's scores in random orders, on so many images that these add nothing to the variance unless given."""
    return [Score("arbitrary", {}, f"{seed} {n}", images, top1, 1, 0, None) for n, top1 in enumerate(accuracies)]


def test_an_interval_is_over_seeds_and_over_the_orders_that_they_share():
    first, second, third = [0.50, 0.54, 0.55], [0.60, 0.62, 0.67], [0.58, 0.65, 0.66]
    means = [fmean(accuracies) for accuracies in (first, second, third)]
    # Student's t for two degrees of freedom, from a printed table.
    alone = estimate([draws(first)])
    assert (alone.mean, alone.models) == (pytest.approx(means[0]), 1)
    assert alone.ci95 == pytest.approx(4.303 * stdev(first) / 3**0.5, rel=1e-3)
    own_orders = estimate([draws(first, 0), draws(second, 1), draws(third, 2)])
    assert (own_orders.mean, own_orders.models) == (pytest.approx(fmean(means)), 3)
    assert own_orders.ci95 == pytest.approx(4.303 * stdev(means) / 3**0.5, rel=1e-3)
    variance, freedom = estimate([draws(first), draws(second), draws(third)]).variance
    of_orders = stdev([fmean(column) for column in zip(first, second, third)]) ** 2 / 3
    of_seeds = stdev(means) ** 2 / 3
    assert variance == pytest.approx(of_orders + of_seeds, rel=1e-4)
    assert freedom == pytest.approx(variance**2 / (of_orders**2 / 2 + of_seeds**2 / 2), rel=1e-4)


def test_an_interval_is_over_images_and_never_empty():
    half_right = estimate([draws([0.5], images=1000)])
    assert half_right.ci95 == pytest.approx(1.96 * (0.25 / 1004) ** 0.5, rel=1e-3)
    assert 0.002 < estimate([draws([1.0], images=1000)]).ci95 < 0.004  # the rule of three says 3 in 1,000
    assert estimate([]) is None
    assert estimate([draws([0.5])], lambda score: score.position_accuracy) is None


def test_one_model_in_a_new_order_for_every_batch_has_no_interval():
    found = results().of("arbitrary", reading="per batch")
    assert estimate([found]).ci95 is None
    assert estimate([found, [score("arbitrary", 0.8, reading="per batch")]]).ci95 > 0.1


@pytest.mark.parametrize(("seeds", "shared"), [(1, False), (3, False), (3, True)])
def test_the_interval_covers_the_truth_in_about_95_of_100_experiments(seeds, shared):
    """An image is classified rightly if the sum of its ease and the effects of seed, order and chance is positive."""
    base, of_images, of_chance, images = 1.5, 2, 0.5, 1000
    random = np.random.default_rng(0)
    settings = list(itertools.product([5, 10, 20], [(0.3, 0.3), (0.1, 0.5)], range(100)))
    covered = 0
    for count, (of_seeds, of_orders), _ in settings:
        of_seed = of_seeds * random.standard_normal((seeds, 1))
        of_order = of_orders * random.standard_normal((1 if shared else seeds, count))
        effects = base + of_images * random.standard_normal(images) + (of_seed + of_order)[..., None]
        right = effects + of_chance * random.standard_normal((seeds, count, images), dtype=np.float32) > 0
        found = estimate(draws(row, 0 if shared else seed, images) for seed, row in enumerate(right.mean(axis=2)))
        # One model's interval is for the accuracy of that model.
        centre = base
        spread_of_seeds = of_seeds
        if seeds == 1:
            centre = base + of_seed.item()
            spread_of_seeds = 0
        truth = NormalDist(-centre, math.hypot(spread_of_seeds, of_orders, of_images, of_chance)).cdf(0)
        covered += abs(found.mean - truth) <= found.ci95
    assert 0.93 <= covered / len(settings) <= 0.985
