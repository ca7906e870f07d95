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
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import trials


def test_scores_of_choice_and_oracle_by_counting(choosy, many):
    labels = torch.randint(5, (40,), generator=torch.Generator().manual_seed(3))
    batches = DataLoader(list(zip(many, labels)), 16)
    to_score = trials(["sequential", "instancewise"], choosy.order, choices=choosy.choice.orders)
    sequential, chosen, oracle, *single = evaluate(
        choosy, nn.Identity(), batches, to_score, Fabric(accelerator="cpu", devices=1)
    )
    right = torch.stack([choosy(many, order).logits.argmax(1) == labels for order in choosy.choice.orders])
    assert [score.top1 for score in single] == pytest.approx([float(row.float().mean()) for row in right])
    by_hand = chosen_by_hand(choosy, many)
    assert chosen.top1 == pytest.approx(sum(bool(right[k, b]) for b, k in enumerate(by_hand)) / 40)
    assert chosen.loss == pytest.approx(float(F.cross_entropy(choosy(many).logits, labels)), rel=1e-4)
    assert oracle.top1 == pytest.approx(float(right.any(0).float().mean()))
    assert oracle.top1 > max(score.top1 for score in single)
    assert [score.chosen for score in single] == pytest.approx([by_hand.count(k) / 40 for k in range(3)])
    assert chosen.chosen is None
    assert sequential.top1 == single[0].top1
    assert [score.order for score in single] == [str(Order(o)) for o in ("0 1 2 3", "3 2 1 0", "0 (1|2) 3")]


def test_the_oracle_prefers_an_order_that_is_right():
    # Of label 0 the first order is nearly sure but wrong, the second right with the larger loss; of label 1 both are
    # right and the first has the smaller loss; of label 2 both are wrong and the second has.
    first = torch.tensor([[5.0, 5.1, 0, 0], [0, 3, 0, 0], [9, 0, 0, 0]])
    second = torch.tensor([[0.1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]])
    labels = torch.tensor([0, 1, 2])
    assert F.cross_entropy(first[:1], labels[:1]) < F.cross_entropy(second[:1], labels[:1])
    assert best_order(torch.stack([first, second]), labels).tolist() == [1, 0, 1]


def test_the_oracle_does_not_choose_what_is_not_a_number():
    logits = torch.tensor([[[math.nan, 1.0]], [[1.0, 0.0]]])  # of two orders, for one image
    for label in (0, 1):
        assert best_order(logits, torch.tensor([label])) == 1
