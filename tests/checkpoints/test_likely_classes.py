import math

import pytest
import torch

from layershuffle.checkpoints.likely_classes import LikelyClass, likely_classes

NAMES = ["ant", "bee", "cat"]


def test_one_order():
    likeliest, second = likely_classes(torch.tensor([0.1, 0.7, 0.2]).log()[None], NAMES, top=2)
    assert likeliest == LikelyClass("bee", pytest.approx(0.7), 1.0)
    assert second == LikelyClass("cat", pytest.approx(0.2), 0.0)


def test_the_mean_of_several_orders():
    probabilities = torch.tensor([[0.6, 0.4, 0.0], [0.3, 0.5, 0.2], [0.8, 0.1, 0.1], [0.4, 0.3, 0.3]])
    classes = likely_classes(probabilities.log(), NAMES, top=5)
    assert [likely.name for likely in classes] == ["ant", "bee", "cat"]
    assert classes[0] == LikelyClass("ant", pytest.approx(0.525), 0.75)
    assert classes[1] == LikelyClass("bee", pytest.approx(0.325), 0.25)


def test_orders_that_are_sure_of_different_classes_disagree_most():
    opposite = torch.tensor([[50.0, 0.0, 0.0], [0.0, 50.0, 0.0]])
    assert likely_classes(opposite, NAMES, top=1).disagreement == pytest.approx(math.log(2))
    # Orders that are unsure alike agree.
    unsure = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    assert likely_classes(unsure, NAMES, top=1).disagreement == 0
    # Where an image can show several classes, each has a share in it: here two of three.
    logits = torch.tensor([[50.0, -50.0, -50.0], [-50.0, 50.0, -50.0]])
    found = likely_classes(logits, NAMES, top=1, thresholds=[0.5] * 3)
    assert found.disagreement == pytest.approx(2 * math.log(2))
