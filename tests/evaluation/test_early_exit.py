"""Early exit, against running every image by itself."""

import statistics

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from layershuffle.evaluation.early_exit import THRESHOLDS, EarlyExit
from layershuffle.evaluation.scoring import evaluate
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import trials

IMAGES = torch.randn(23, 1, 8, 8, generator=torch.Generator().manual_seed(2))
LABELS = torch.arange(23) % 5


def swept(model, order):
    """What early exit finds for all rules and thresholds, and the scores of stopping all images after each step."""
    early_exit = EarlyExit(order, torch.device("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1)
    batches = DataLoader(list(zip(IMAGES, LABELS)), batch_size=5)
    depths = tuple(range(1, len(order) + 1))
    to_score = trials(["pruned"], order, random_orders=1, depths=depths)

    scores = evaluate(model, nn.Identity(), batches, to_score, fabric, on_output=early_exit.add)

    first_steps = [
        score for score in scores if score.variant["strategy"] == "first" and score.variant["sequence"] == "original"
    ]
    return early_exit.compute().exits, first_steps


def logits_after_each_step(model, order, image):
    """The logits of a single image, were it to stop after the first step, after the second and so on."""
    return [model(image[None], order[:end]).logits[0] for end in range(1, len(order) + 1)]


def stopped(logits_by_step, rule, threshold):
    """The logits with which an image stops, of those after each of its steps, and how many steps that took."""
    unchanged = 0  # for how many steps the predicted class has been the same
    predicted_before = None
    steps = 0
    for logits in logits_by_step:
        steps += 1
        predicted = int(logits.argmax())
        unchanged = unchanged + 1 if predicted == predicted_before else 0
        predicted_before = predicted
        confidence = float(logits.softmax(0)[predicted])
        if rule == "confidence" and confidence > threshold:
            break
        if rule == "patience" and unchanged >= threshold:
            break
    return logits, steps


@pytest.mark.parametrize(
    ("base_order", "rules_that_differ"),
    [("0 1 2 3", {"confidence"}), ("2 (0|1) 1 3a 2 2 3f", {"confidence", "patience"})],
    ids=["0 1 2 3", "2 (0|1) 1 3a 2 2 3f"],
)
@torch.no_grad()
def test_every_image_stops_where_it_does_by_itself(small, base_order, rules_that_differ):
    model = small(order=base_order)
    order = Order(base_order)
    exits, _ = swept(model, order)

    expected = [("confidence", threshold) for threshold in THRESHOLDS]
    expected += [("patience", patience) for patience in range(len(order))]
    assert [(one.rule, one.threshold) for one in exits] == expected
    images = [logits_after_each_step(model, order, image) for image in IMAGES]
    for one in exits:
        stops = [stopped(logits_by_step, one.rule, one.threshold) for logits_by_step in images]
        logits = torch.stack([logits for logits, _ in stops])
        assert one.layers == statistics.fmean(steps for _, steps in stops)
        assert one.top1 == statistics.fmean((logits.argmax(1) == LABELS).tolist())
        assert one.loss == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-4)

    # The images differ in where they stop, so that the mean is no whole number, or there would be nothing to compare.
    assert {one.rule for one in exits if one.layers % 1} >= rules_that_differ


def test_at_the_ends_of_either_sweep_all_images_stop_together(small):
    exits, together = swept(small(), Order("0 1 2 3"))
    for rule in ("confidence", "patience"):
        first, *_, last = (one for one in exits if one.rule == rule)
        for end, score, layers in ((first, together[0], 1), (last, together[-1], 4)):
            assert end.layers == layers
            assert end.top1 == score.top1
            assert end.top5 == score.top5
            assert end.loss == pytest.approx(score.loss, rel=1e-6)


def test_nothing_is_sure_of_logits_that_are_not_finite(small):
    model = small()
    with torch.no_grad():
        model.vit.blocks[2].norm1.weight.fill_(torch.nan)
    exits, together = swept(model, Order("0 1 2 3"))

    highest_confidence = exits[len(THRESHOLDS) - 1]
    assert highest_confidence.layers == 4
    assert together[-1].loss is None
