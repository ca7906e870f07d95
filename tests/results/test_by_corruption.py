"""Errors on the corruptions of ImageNet-C, and their mean relative to AlexNet's."""

import pytest

from layershuffle.results.measures import ByCorruptionCounts, Corruption, OrdersOnCorruptions
from layershuffle.results.measures.by_corruption import ALEXNET

RESNET50 = {"gaussian_noise": (0.7071, 0.7977), "defocus_blur": (0.6125, 0.7471), "brightness": (0.3198, 0.5664)}
"""The error and the corruption error of a ResNet-50, as they are published."""


def counts(right_of, images=100, samples=1):
    """The counts of one kind of order, with so many images classified rightly in each corruption's five severities."""
    corruptions = []
    right = []
    for name, rights in right_of.items():
        for severity, count in enumerate(rights, 1):
            corruptions.append(Corruption(name, severity, images))
            right.append(count)
    return ByCorruptionCounts(corruptions, [OrdersOnCorruptions("sequential", {}, samples, right)])


def test_errors_are_means_over_the_severities():
    # In two orders, 100 images are classified 200 times.
    measure = counts({"fog": [160, 120, 80, 40, 0], "spatter": [200] * 5}, samples=2)
    (orders,) = measure.orders
    assert measure.errors(orders)["fog"] == pytest.approx({1: 0.2, 2: 0.4, 3: 0.6, 4: 0.8, 5: 1.0})
    assert measure.mean_errors(orders) == pytest.approx({"fog": 0.6, "spatter": 0})
    assert measure.mean_corruption_error(orders) is None
    header, rows = measure.tables(None)["corruptions"]
    assert header == ["corruption", "sequential"]
    assert rows == [["fog", "60.00"], ["spatter", "0.00"], ["mean", "30.00"]]
    assert measure.files(None)["corruptions"].rows[1] == ["sequential", "fog", "2", "40.00"]


def test_the_mean_corruption_error_needs_everything():
    everything = {name: [20] * 5 for name in ALEXNET}
    # The extra corruptions don't count.
    measure = counts(everything | {"spatter": [0] * 5})
    expected = sum(0.8 / of_alexnet for of_alexnet in ALEXNET.values()) / 15
    assert measure.mean_corruption_error(measure.orders[0]) == pytest.approx(expected)
    assert measure.tables(None)["corruptions"].rows[-1] == ["mCE", f"{100 * expected:.2f}"]

    # One severity is missing.
    measure = counts(everything | {"snow": [20] * 4})
    assert measure.mean_corruption_error(measure.orders[0]) is None


def test_alexnets_errors_are_those_of_published_corruption_errors():
    # A corruption error is the error in proportion to AlexNet's.
    for name, (error, corruption_error) in RESNET50.items():
        assert error / ALEXNET[name] == pytest.approx(corruption_error, abs=1e-4)
