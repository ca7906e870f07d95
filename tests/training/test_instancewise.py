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

    one_by_one = []
    for image, choice in zip(many, chosen):
        output = choosy(image[None], choosy.choice.orders[choice])
        one_by_one.append(output.logits[0])
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
    probabilities = [[0.7, 0.2, 0.1], [0.3, 0.3, 0.4]]  # of three orders, for two images
    mean = [0.5, 0.25, 0.25]
    exploration, specialisation = choice_losses(torch.tensor(probabilities), floor=0.15)

    def kl_from_uniform(q):
        return sum(1 / 3 * math.log(1 / 3 / max(value, 0.15)) for value in q)

    assert float(exploration) == pytest.approx(kl_from_uniform(mean), rel=1e-5)
    mean_of_images = (kl_from_uniform(probabilities[0]) + kl_from_uniform(probabilities[1])) / 2
    assert float(specialisation) == pytest.approx(-mean_of_images, rel=1e-5)

    # Images for which all orders are equally likely are as far from any preference as can be.
    even = choice_losses(torch.full((4, 3), 1 / 3), floor=0.01)
    assert [float(loss) for loss in even] == pytest.approx([0, 0], abs=1e-6)


def test_the_expected_loss_written_out(choosy, many):
    labels = torch.arange(40) % 5
    objective = InstanceWise(
        temperature=4.0, decay=0.1, min_temperature=1.0, exploration=0.3, specialisation=0.2, floor=0.1
    )
    orders = objective.fixed_orders(choosy)
    key = StepKey(7, 5, 1)  # seed, step and rank
    loss = objective.loss(choosy, many, labels, orders, key)

    # Gumbel-softmax over the orders, whose noise is a function of the key. By step 5 the temperature has fallen.
    logits_of_choice = choosy.choice(choosy.embed(many).tokens)
    generator = torch.Generator().manual_seed(int(seeded(7, 5, 1).random() * 2**53))
    gumbel = -torch.log(-torch.log(torch.rand(40, 3, generator=generator)))
    temperature = 4 * math.exp(-0.1 * 5)
    weights = torch.softmax((logits_of_choice + gumbel) / temperature, dim=1)
    classification_loss = 0.0
    for choice, order in enumerate(choosy.choice.orders):
        for image in range(40):
            logits = choosy(many[image : image + 1], order).logits
            cross_entropy = F.cross_entropy(logits, labels[image : image + 1])
            classification_loss += weights[image, choice].item() * cross_entropy.item() / 40
    exploration, specialisation = choice_losses(logits_of_choice.softmax(1), floor=0.1)
    total = classification_loss + 0.3 * exploration.item() + 0.2 * specialisation.item()
    assert loss.terms["classification_loss"].item() == pytest.approx(classification_loss, rel=1e-4)
    assert loss.total.item() == pytest.approx(total, rel=1e-4)

    # The logits of the step, of which accuracies are computed, are those in the chosen orders.
    logits_by_choice = []
    for image, choice in zip(many, chosen_by_hand(choosy, many)):
        logits_by_choice.append(choosy(image[None], orders[choice]).logits[0])
    torch.testing.assert_close(loss.logits, torch.stack(logits_by_choice), rtol=1e-4, atol=1e-4)

    again = objective.loss(choosy, many, labels, orders, StepKey(7, 5, 1))
    in_next_step = objective.loss(choosy, many, labels, orders, StepKey(7, 6, 1))
    assert again.total.item() == loss.total.item()
    assert in_next_step.total.item() != loss.total.item()

    loss.total.backward()
    assert choosy.choice.predictor.weight.grad.abs().sum() > 0
    for block in choosy.vit.blocks:
        assert block.mlp.fc1.weight.grad.abs().sum() > 0


def test_the_temperature_falls_to_its_end():
    objective = InstanceWise(temperature=10, decay=0.1, min_temperature=2)
    assert objective.temperature_at(0) == pytest.approx(10)
    assert objective.temperature_at(1) == pytest.approx(10 * math.exp(-0.1))
    assert objective.temperature_at(100) == pytest.approx(2)


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
