"""Protocols, the prefix-sharing runner, and the scores against counting by hand."""

import math
import weakref

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from layershuffle.evaluation.scoring import evaluate, run_orders
from layershuffle.orders.named import permutation, random_subset, sequential
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import PROTOCOLS, Trial, trials

SEVERAL = [
    "0 1 2 3", "0 1", "0 1 3 2", "", "3", "0 1 2 3 0", "(0|1) 2", "(0|1)*2", "0a 1 0f", "0 1", "2 2 2",
    "0 1<1", "0 1<1 2<2", "0 1<1 2 3<2", "0 1 2<1", "(0+1) 2", "(0+1)", "0 1 (2+3)<2",
]  # fmt: skip


@pytest.mark.parametrize("position", ["none", "encode", "predict"])
def test_sharing_prefixes_changes_no_result(small, images, position):
    model = small(position=position, positions=5)
    orders = [Order(text) for text in SEVERAL] + [permutation(4, seeded(number)) for number in range(8)]
    found = dict(run_orders(model, images, orders))
    assert found.keys() == set(orders)
    for order, output in found.items():
        alone = model(images, order)
        assert torch.equal(output.logits, alone.logits), str(order)
        if position == "predict" and len(order):
            assert torch.equal(output.position_logits, alone.position_logits)


def count_passes(model, images, orders):
    passes = 0

    def count(*_):
        nonlocal passes
        passes += 1

    hooks = [block.register_forward_hook(count) for block in model.vit.blocks]
    list(run_orders(model, images, orders))
    for hook in hooks:
        hook.remove()
    return passes


def test_a_shared_prefix_runs_once(small, images):
    model = small(depth=10)
    subsets = [Order(layer for layer in range(10) if subset >> layer & 1) for subset in range(1, 1024)]
    # Each in-order subset is one step beyond the subset without its last layer.
    assert count_passes(model, images[:1], subsets) == 1023
    assert sum(map(len, subsets)) == 5_120
    assert count_passes(model, images[:1], [Order("0 1 2"), Order("0 1 3"), Order("1 0")]) == 6


def test_no_more_than_one_activation_per_depth_is_held(small, images, monkeypatch):
    model, alive, most = small(depth=8), weakref.WeakSet(), 0
    run_step = model.run_step

    def counted(tokens, step, position, read):
        nonlocal most
        after, logits = run_step(tokens, step, position, read)
        alive.add(after.tokens)
        most = max(most, len(alive))
        return after, logits

    monkeypatch.setattr(model, "run_step", counted)
    subsets = [Order(layer for layer in range(8) if subset >> layer & 1) for subset in range(1, 256)]
    with torch.inference_mode():
        for _ in run_orders(model, images, subsets):
            pass
    assert most == 8  # the longest branch; 255 steps were run


class Answer(nn.Module):
    """A model that says the label after one layer and something else after another, whatever the image."""

    order = Order("0 1 2")

    def check(self, order):
        return Order(order).check(3)

    def embed(self, images):
        return torch.zeros(len(images), 7) + images[:, 0, :1, 0]

    def run_step(self, tokens, step, position, read):
        return tokens + 10 ** -(position + 1) * (1 + step.units[0].layer) * torch.eye(7)[step.units[0].layer], None

    def classify(self, tokens, position_logits=(), positions=()):
        from layershuffle import Output

        return Output(tokens[:, :7])


def loader(labels, batch_size=2):
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    return DataLoader(list(zip(images, labels)), batch_size)


def cpu():
    return Fabric(accelerator="cpu", devices=1)


class ToFloat(nn.Module):
    def forward(self, images):
        return images.float()


def test_scores_against_counting_by_hand():
    # Layer n adds to class n's logit, the more the earlier it runs: "2 0 1" ranks the classes 2 0 1, then the rest.
    to_score = [Trial("given", Order("2 0 1")), Trial("given", Order("0"))]
    first, second = evaluate(Answer(), ToFloat(), loader([2, 2, 0, 1, 2]), to_score, cpu())
    assert (first.images, first.top1, first.top5) == (5, 3 / 5, 1.0)
    logits = torch.tensor([0.01, 0.002, 0.3, 0, 0, 0, 0])
    expected = -sum(math.log(torch.softmax(logits, 0)[label]) for label in [2, 2, 0, 1, 2]) / 5
    assert first.loss == pytest.approx(expected, rel=1e-6)
    assert (second.top1, second.order, second.position_accuracy) == (1 / 5, "0", None)


def test_logits_that_are_not_numbers_are_wrong(small):
    class Broken(Answer):
        order = Order("0 1")

        def classify(self, tokens, position_logits=(), positions=()):
            # The prediction of position 0 and of class 0 is right, if NaN passes for the largest number.
            nan = torch.full_like(tokens, math.nan)
            return Answer.classify(self, nan)._replace(position_logits=nan[None], positions=[0])

    to_score = [Trial("given", Order("0"))]
    (broken,) = evaluate(Broken(), ToFloat(), loader([0, 0, 0]), to_score, cpu())
    assert (broken.images, broken.nan, broken.top1, broken.top5, broken.position_accuracy) == (3, 3, 0, 0, 0)
    assert broken.loss is None
    (whole,) = evaluate(Answer(), ToFloat(), loader([0, 0, 0]), to_score, cpu())
    assert (whole.nan, whole.top1, whole.top5) == (0, 1, 1)


def test_a_fresh_order_for_every_batch():
    ran = []

    class Spy(Answer):
        def run_step(self, tokens, step, position, read):
            ran.append(step.units[0].layer)
            return super().run_step(tokens, step, position, read)

    labels = [0] * 24
    (score,) = evaluate(Spy(), ToFloat(), loader(labels), [Trial("arbitrary", None)], cpu(), seed=3)
    sampled = [tuple(ran[start : start + 3]) for start in range(0, len(ran), 3)]
    assert len(sampled) == 12
    assert len(set(sampled)) > 1
    batches = [permutation(3, seeded(3, "per batch", batch)) for batch in range(12)]
    assert sampled == [tuple(step.units[0].layer for step in order) for order in batches]
    assert score.top1 == sum(order[0] == 0 for order in sampled) / 12
    assert score.order is None


def test_pruned_layers_in_a_fresh_order_for_every_batch():
    """Also beside other fresh orders, and in a model whose base order isn't the layers' sequence."""
    per_batch = [
        [
            trial
            for trial in trials(["arbitrary", "pruned"], Order(base_order), random_orders=1, depths=(1, 2))
            if callable(trial.order)
        ]
        for base_order in ("0 1 2", "2 0 1")
    ]
    labels = [0, 0, 1, 1, 2, 2] * 4
    for to_score, base_order in zip(per_batch, ("0 1 2", "2 0 1")):
        assert [trial.variant["kept"] for trial in to_score] == [1, 2]
        scores = evaluate(Answer(), ToFloat(), loader(labels), [Trial("arbitrary", None), *to_score], cpu(), seed=3)
        for kept, score in enumerate(scores[1:], 1):
            orders = []
            for batch in range(12):
                rng = seeded(3, "per batch", batch)
                orders.append(random_subset(kept, 3, rng).shuffled(rng).over(Order(base_order)))
            assert len(set(orders)) > 2
            # The first layer to run decides the answer, see Answer.
            assert score.top1 == sum(order[0].units[0].layer == labels[2 * n] for n, order in enumerate(orders)) / 12
            assert score.order is None


def test_position_accuracy_counts_steps_and_images(small, images):
    model = small(position="predict")
    order = Order("2 0 1")
    logits = model(images, order).position_logits
    right = sum(int(logits[p, b].argmax()) == p for p in range(3) for b in range(3)) / 9
    batches = DataLoader(list(zip(images, [0, 1, 2])), 2)
    (score,) = evaluate(model, nn.Identity(), batches, [Trial("given", order)], cpu())
    assert score.position_accuracy == pytest.approx(right)


def test_orders_that_cannot_run_fail_before_the_first_batch(small):
    def unread():
        raise AssertionError("read a batch")
        yield

    with pytest.raises(ValueError, match="layer 4"):
        evaluate(small(), nn.Identity(), unread(), [Trial("given", Order("4"))], cpu())


def test_protocols():
    settings = {"random_orders": 5, "keep": (2, 4), "orders": (Order("3 (1|2)"),), "seed": 1}
    assert list(PROTOCOLS)[:4] == ["sequential", "arbitrary", "pruned", "failing"]
    assert trials(["sequential"], 4, **settings) == [Trial("sequential", sequential(4))]
    (per_batch, *fixed) = trials(["arbitrary"], 12, **settings)
    assert per_batch == Trial("arbitrary", None, {"reading": "per batch"})
    assert len({trial.order for trial in fixed}) == 5
    assert all(sorted(trial.order) == list(sequential(12)) for trial in fixed)
    assert trials(["given"], 4, **settings) == [Trial("given", Order("3 (1|2)"), {"order": "3 (1|2)"})]
    assert trials(["arbitrary"], 12, **settings) == trials(["arbitrary"], 12, **settings)
    assert trials(["arbitrary"], 12, **settings) != trials(["arbitrary"], 12, random_orders=5, seed=2)


def test_pruned_orders_by_every_strategy_in_both_sequences():
    by_variant = {}
    for trial in trials(["pruned"], 12, random_orders=5, depths=(3, 6)):
        by_variant.setdefault(tuple(trial.variant.values()), []).append(trial.order)
    assert by_variant.keys() == {
        (k, strategy, sequence)
        for k in (3, 6)
        for strategy in ("first", "even", "random")
        for sequence in ("original", "random")
    } | {(3, "random", "per batch"), (6, "random", "per batch")}
    assert by_variant[3, "first", "original"] == [Order("0 1 2")]
    assert by_variant[6, "even", "original"] == [Order("0 2 4 6 8 10")]
    for k in (3, 6):
        (draw,) = by_variant.pop((k, "random", "per batch"))
        sampled = [draw(seeded(0, n)) for n in range(5)]
        assert draw(seeded(0, 0)) == sampled[0]
        assert all(len(order.layers) == len(order) == k for order in sampled)
        assert not all(list(order) == sorted(order) for order in sampled)
    for (k, strategy, sequence), orders in by_variant.items():
        assert len(orders) == (1 if strategy != "random" and sequence == "original" else 5)
        assert all(len(order.layers) == len(order) == k for order in orders)
        in_sequence = [list(order) == sorted(order) for order in orders]
        assert all(in_sequence) if sequence == "original" else not all(in_sequence)
    for order in by_variant[3, "first", "random"]:
        assert order.layers == {0, 1, 2}
    assert [t.variant["kept"] for t in trials(["pruned"], 4, random_orders=1)][::7] == [1, 2, 3, 4]


def test_protocols_that_ask_too_much():
    with pytest.raises(ValueError, match="shuffled: .* sequential"):
        trials(["shuffled"], 12)
    with pytest.raises(ValueError, match="nothing to score"):
        trials(["failing"], 12, dead=())
    with pytest.raises(ValueError, match="--order"):
        trials(["given"], 12)
    with pytest.raises(ValueError, match="13 layers .* 12"):
        trials(["pruned"], 12, depths=(13,))
