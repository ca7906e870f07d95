"""Instance-wise reordering against the formulas of arXiv 2103.03457, term by term."""

import math

import pytest
import torch
from helpers import chosen_by_hand
from torch.nn import functional as F

from layershuffle.orders.order import seeded
from layershuffle.orders.protocols import trials
from layershuffle.training.objectives import InstanceWise, StepKey
from layershuffle.training.objectives.instancewise import choice_losses

CHOICES = ["sequential", "3 2 1 0", "0 (1|2) 3"]


def test_each_image_runs_in_the_order_it_chooses(choosy, many):
    chosen = chosen_by_hand(choosy, many)
    assert set(chosen) == {0, 1, 2}
    one_by_one = [choosy(image[None], choosy.choice.orders[k]).logits[0] for image, k in zip(many, chosen)]
    torch.testing.assert_close(choosy(many).logits, torch.stack(one_by_one), rtol=1e-4, atol=1e-4)


def test_images_that_choose_alike_run_together(choosy, many):
    rows = 0

    def count(module, inputs):
        nonlocal rows
        rows += len(inputs[0])

    choosy.vit.blocks[0].register_forward_pre_hook(count)
    choosy(many)
    assert rows == len(many)  # layer 0 is in every order, once


def test_the_losses_are_the_papers():
    p = [[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]
    mean = [0.5, 0.25, 0.25]
    exploration, specialisation = choice_losses(torch.tensor(p), floor=0.15)

    def kl_from_uniform(q):
        return sum(1 / 3 * math.log(1 / 3 / max(value, 0.15)) for value in q)

    assert float(exploration) == pytest.approx(kl_from_uniform(mean), rel=1e-5)
    assert float(specialisation) == pytest.approx(-(kl_from_uniform(p[0]) + kl_from_uniform(p[1])) / 2, rel=1e-5)
    even = choice_losses(torch.full((4, 3), 1 / 3), floor=0.01)
    assert [float(loss) for loss in even] == pytest.approx([0, 0], abs=1e-6)


def test_the_expected_loss_written_out(choosy, many):
    labels = torch.arange(40) % 5
    objective = InstanceWise(
        temperature=4.0, decay=0.1, min_temperature=1.0, exploration=0.3, specialisation=0.2, floor=0.1
    )
    orders = objective.fixed_orders(choosy)
    loss = objective.loss(choosy, many, labels, orders, StepKey(7, 5, 1))
    logits = choosy.choice(choosy.embed(many).tokens)
    generator = torch.Generator().manual_seed(int(seeded(7, 5, 1).random() * 2**53))
    gumbel = -torch.log(-torch.log(torch.rand(40, 3, generator=generator)))
    weights = torch.softmax((logits + gumbel) / (4 * math.exp(-0.5)), dim=1)
    expected = sum(
        weights[b, k].item() * F.cross_entropy(choosy(many[b : b + 1], order).logits, labels[b : b + 1]).item()
        for k, order in enumerate(choosy.choice.orders)
        for b in range(40)
    )
    assert loss.terms["classification_loss"].item() == pytest.approx(expected / 40, rel=1e-4)
    exploration, specialisation = choice_losses(logits.softmax(1), 0.1)
    assert loss.total.item() == pytest.approx(
        expected / 40 + 0.3 * exploration.item() + 0.2 * specialisation.item(), rel=1e-4
    )
    chosen = [orders[k] for k in chosen_by_hand(choosy, many)]
    by_choice = [choosy(image[None], order).logits[0] for image, order in zip(many, chosen)]
    torch.testing.assert_close(loss.logits, torch.stack(by_choice), rtol=1e-4, atol=1e-4)
    again = objective.loss(choosy, many, labels, orders, StepKey(7, 5, 1))
    other = objective.loss(choosy, many, labels, orders, StepKey(7, 6, 1))
    assert again.total.item() == loss.total.item() != other.total.item()
    loss.total.backward()
    assert choosy.choice.predictor.weight.grad.abs().sum() > 0
    assert all(block.mlp.fc1.weight.grad.abs().sum() > 0 for block in choosy.vit.blocks)


def test_the_temperature_falls_to_its_end():
    objective = InstanceWise(temperature=10, decay=0.1, min_temperature=2)
    assert [objective.temperature_at(step) for step in (0, 1, 100)] == pytest.approx([10, 10 * math.exp(-0.1), 2])


def test_choices_that_cannot_be(small):
    for choices, complaint in (
        ([], "nothing to choose from"),
        (["0 1", "sequential", "0 1"], "'0 1' is given more than once"),
        (["0 4"], "names layer 4"),
        (["sideways"], "no order named sideways"),
    ):
        with pytest.raises(ValueError, match=complaint):
            small(choices=choices)
    with pytest.raises(ValueError, match="can't predict positions"):
        small(choices=CHOICES, position="predict")
    with pytest.raises(ValueError, match="is for models trained with model.choices"):
        trials(["instancewise"], 4)
