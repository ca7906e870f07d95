"""The scores of images that choose their orders (arXiv 2103.03457), by counting."""

import math

import pytest
import torch
from helpers import chosen_by_hand
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from layershuffle.evaluation.instancewise import best_order
from layershuffle.evaluation.scoring import evaluate
from layershuffle.orders.protocols import trials


def test_scores_of_choice_and_oracle_by_counting(choosy, many):
    labels = torch.randint(5, (40,), generator=torch.Generator().manual_seed(3))
    batches = DataLoader(list(zip(many, labels)), batch_size=16)
    orders = choosy.choice.orders
    to_score = trials(["sequential", "instancewise"], choosy.order, choices=orders)
    fabric = Fabric(accelerator="cpu", devices=1)

    sequential, chosen, oracle, *of_each_order = evaluate(choosy, nn.Identity(), batches, to_score, fabric)

    # Whether the model is right, by order and image.
    right = torch.stack([choosy(many, order).logits.argmax(1) == labels for order in orders])
    choices = chosen_by_hand(choosy, many)

    # Each order for all images.
    assert [score.order for score in of_each_order] == ["0 1 2 3", "3 2 1 0", "0 (1|2) 3"]
    for index, score in enumerate(of_each_order):
        assert score.top1 == pytest.approx(float(right[index].float().mean()))
        assert score.chosen == pytest.approx(choices.count(index) / 40)
    assert sequential.top1 == of_each_order[0].top1

    # For each image the order that it chooses.
    right_as_chosen = [bool(right[choice, image]) for image, choice in enumerate(choices)]
    assert chosen.top1 == pytest.approx(sum(right_as_chosen) / 40)
    assert chosen.loss == pytest.approx(float(F.cross_entropy(choosy(many).logits, labels)), rel=1e-4)
    assert chosen.chosen is None

    # For each image the order that is best for it.
    assert oracle.top1 == pytest.approx(float(right.any(0).float().mean()))
    assert oracle.top1 > max(score.top1 for score in of_each_order)


def test_the_oracle_prefers_an_order_that_is_right():
    # Label 0: the first order is wrong, though with the smaller loss, and the second right.
    # Label 1: both are right, and the first has the smaller loss.
    # Label 2: both are wrong, and the second has the smaller loss.
    labels = torch.tensor([0, 1, 2])
    first = torch.tensor([[5.0, 5.1, 0, 0], [0, 3, 0, 0], [9, 0, 0, 0]])
    second = torch.tensor([[0.1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    assert F.cross_entropy(first[:1], labels[:1]) < F.cross_entropy(second[:1], labels[:1])
    assert best_order(torch.stack([first, second]), labels).tolist() == [1, 0, 1]


def test_the_oracle_does_not_choose_what_is_not_a_number():
    logits = torch.tensor([[[math.nan, 1.0]], [[1.0, 0.0]]])  # of two orders, for one image
    for label in (0, 1):
        assert best_order(logits, torch.tensor([label])) == 1
