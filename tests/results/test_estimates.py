"""Means over orders and seeds, and their intervals."""

import itertools
import math
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest
from example_results import results, score

from layershuffle.results import Score, estimate, summarise

T_OF_TWO_DEGREES_OF_FREEDOM = 4.303
"""The 97.5th percentile of Student's t distribution, from a printed table."""


def test_summaries():
    values = [0.5, 0.7, 0.6, 0.9]
    summary = summarise(values)
    assert summary.n == 4
    assert summary.min == 0.5
    assert summary.max == 0.9
    assert summary.mean == pytest.approx(fmean(values))
    assert summary.std == pytest.approx(stdev(values))
    assert summarise([0.5]).std is None


def draws(accuracies, seed=0, images=10**9):
    """A model's scores in random orders; models with the same ``seed`` here ran in the same orders.

    By default there are so many images that their number adds nothing to the variance.
    """
    scores = []
    for draw, top1 in enumerate(accuracies):
        order = f"{seed} {draw}"
        scores.append(Score("arbitrary", {}, order, images, top1, top5=1, loss=0, position_accuracy=None))
    return scores


def test_an_interval_is_over_seeds_and_over_the_orders_that_they_share():
    first = [0.50, 0.54, 0.55]
    second = [0.60, 0.62, 0.67]
    third = [0.58, 0.65, 0.66]
    means_of_seeds = [fmean(first), fmean(second), fmean(third)]
    means_of_orders = [fmean(accuracies) for accuracies in zip(first, second, third)]

    alone = estimate([draws(first)])
    assert alone.models == 1
    assert alone.mean == pytest.approx(fmean(first))
    assert alone.ci95 == pytest.approx(T_OF_TWO_DEGREES_OF_FREEDOM * stdev(first) / 3**0.5, rel=1e-3)

    own_orders = estimate([draws(first, 0), draws(second, 1), draws(third, 2)])
    assert own_orders.models == 3
    assert own_orders.mean == pytest.approx(fmean(means_of_seeds))
    assert own_orders.ci95 == pytest.approx(T_OF_TWO_DEGREES_OF_FREEDOM * stdev(means_of_seeds) / 3**0.5, rel=1e-3)

    # In shared orders both variances add up, and Satterthwaite's formula has the degrees of freedom.
    variance, freedom = estimate([draws(first), draws(second), draws(third)]).variance
    of_orders = stdev(means_of_orders) ** 2 / 3
    of_seeds = stdev(means_of_seeds) ** 2 / 3
    assert variance == pytest.approx(of_orders + of_seeds, rel=1e-4)
    assert freedom == pytest.approx(variance**2 / (of_orders**2 / 2 + of_seeds**2 / 2), rel=1e-4)


def test_an_interval_is_over_images_and_never_empty():
    half_right = estimate([draws([0.5], images=1000)])
    # Agresti and Coull's interval, which counts two successes and two failures more.
    assert half_right.ci95 == pytest.approx(1.96 * (0.25 / 1004) ** 0.5, rel=1e-3)
    assert 0.002 < estimate([draws([1.0], images=1000)]).ci95 < 0.004  # the rule of three says 3 in 1,000
    assert estimate([]) is None
    assert estimate([draws([0.5])], lambda score: score.position_accuracy) is None


def test_one_model_in_a_new_order_for_every_batch_has_no_interval():
    one = results().of("arbitrary", reading="per batch")
    other = [score("arbitrary", 0.8, reading="per batch")]
    assert estimate([one]).ci95 is None
    assert estimate([one, other]).ci95 > 0.1


@pytest.mark.parametrize(("seeds", "shared"), [(1, False), (3, False), (3, True)])
def test_the_interval_covers_the_truth_in_about_95_of_100_experiments(seeds, shared):
    """An image is classified rightly if the sum of its ease and the effects of seed, order and chance is positive."""
    mean_ease = 1.5
    spread_of_images = 2
    spread_of_chance = 0.5
    images = 1000
    orders_of_seeds = 1 if shared else seeds

    random = np.random.default_rng(0)
    # 100 experiments with each number of orders, and with seeds that differ as much as orders do or less.
    experiments = list(itertools.product([5, 10, 20], [(0.3, 0.3), (0.1, 0.5)], range(100)))
    covered = 0
    for orders, (spread_of_seeds, spread_of_orders), _ in experiments:
        # The effects have three dimensions: [seed, order, image].
        of_seed = spread_of_seeds * random.standard_normal((seeds, 1, 1))
        of_order = spread_of_orders * random.standard_normal((orders_of_seeds, orders, 1))
        ease = mean_ease + spread_of_images * random.standard_normal(images)
        of_chance = spread_of_chance * random.standard_normal((seeds, orders, images), dtype=np.float32)
        right = ease + (of_seed + of_order) + of_chance > 0
        accuracies = right.mean(axis=2)
        names_of_orders = [0] * seeds if shared else range(seeds)
        found = estimate(draws(of_model, name, images) for of_model, name in zip(accuracies, names_of_orders))

        # One model's interval is for the accuracy of that model.
        centre = mean_ease
        spread = math.hypot(spread_of_seeds, spread_of_orders, spread_of_images, spread_of_chance)
        if seeds == 1:
            centre = mean_ease + of_seed.item()
            spread = math.hypot(spread_of_orders, spread_of_images, spread_of_chance)
        # The truth is the probability that a sum of such effects is positive.
        truth = NormalDist(-centre, spread).cdf(0)
        covered += abs(found.mean - truth) <= found.ci95
    assert 0.93 <= covered / len(experiments) <= 0.985
