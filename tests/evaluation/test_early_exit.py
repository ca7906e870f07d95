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

IMAGES, LABELS = torch.randn(23, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(23) % 5


def swept(model, order):
    """What early exit finds, and the scores of stopping all images after each step."""
    early_exit = EarlyExit(order, torch.device("cpu"))
    fabric = Fabric(accelerator="cpu", devices=1)
    batches = DataLoader(list(zip(IMAGES, LABELS)), 5)
    asked = trials(["pruned"], order, random_orders=1, depths=tuple(range(1, len(order) + 1)))
    scores = evaluate(model, nn.Identity(), batches, asked, fabric, on_output=early_exit.add)
    return early_exit.compute().exits, [s for s in scores if s.variant["strategy"] == "first"][::2]


def stopped(by_step, rule, threshold):
    """The logits with which an image stops, of those after each of its steps, and how many steps that took."""
    unchanged, before = 0, None
    for steps in range(1, len(by_step) + 1):
        logits = by_step[steps - 1]
        predicted = int(logits.argmax())
        unchanged = unchanged + 1 if predicted == before else 0
        before = predicted
        if float(logits.softmax(0)[predicted]) > threshold if rule == "confidence" else unchanged >= threshold:
            break
    return logits, steps


@pytest.mark.parametrize("base_order", ["0 1 2 3", "2 (0|1) 1 3a 2 2 3f"])
@torch.no_grad()
def test_every_image_stops_where_it_does_by_itself(small, base_order):
    model, order = small(order=base_order), Order(base_order)
    found, _ = swept(model, order)
    ends = range(1, len(order) + 1)
    alone = [[model(image[None], order[:end]).logits[0] for end in ends] for image in IMAGES]
    assert [(f.rule, f.threshold) for f in found] == [
        *(("confidence", threshold) for threshold in THRESHOLDS),
        *(("patience", patience) for patience in range(len(order))),
    ]
    for f in found:
        found_alone = [stopped(by_step, f.rule, f.threshold) for by_step in alone]
        logits = torch.stack([logits for logits, _ in found_alone])
        assert f.layers == statistics.fmean(steps for _, steps in found_alone)
        assert f.top1 == statistics.fmean((logits.argmax(1) == LABELS).tolist())
        assert f.loss == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-4)
    # The images differ in where they stop, or there would be nothing to compare.
    differing = {f.rule for f in found if f.layers % 1}
    assert differing >= ({"confidence"} if base_order == "0 1 2 3" else {"confidence", "patience"})


def test_at_the_ends_of_either_sweep_all_images_stop_together(small):
    found, together = swept(small(), Order("0 1 2 3"))
    for rule in ("confidence", "patience"):
        ends = [f for f in found if f.rule == rule]
        for end, score, layers in ((ends[0], together[0], 1), (ends[-1], together[-1], 4)):
            assert (end.layers, end.top1, end.top5) == (layers, score.top1, score.top5)
            assert end.loss == pytest.approx(score.loss, rel=1e-6)


def test_nothing_is_sure_of_logits_that_are_not_finite(small):
    model = small()
    with torch.no_grad():
        model.vit.blocks[2].norm1.weight.fill_(torch.nan)
    found, together = swept(model, Order("0 1 2 3"))
    assert found[len(THRESHOLDS) - 1].layers == 4
    assert together[-1].loss is None
