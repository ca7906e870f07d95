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
