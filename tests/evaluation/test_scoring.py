"""Protocols, the prefix-sharing runner, and the scores against counting by hand."""

import math
import weakref
from itertools import combinations, product

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
    orders = [Order(text) for text in SEVERAL]
    orders += [permutation(4, seeded(number)) for number in range(8)]

    outputs = dict(run_orders(model, images, orders))

    assert outputs.keys() == set(orders)
    for order, output in outputs.items():
        alone = model(images, order)
        assert torch.equal(output.logits, alone.logits), str(order)
        if position == "predict" and len(order):
            assert torch.equal(output.position_logits, alone.position_logits)


def count_passes(model, images, orders):
    """How often a layer runs while a model runs several orders."""
    passes = 0

    def count(*_):
        nonlocal passes
        passes += 1

    hooks = [block.register_forward_hook(count) for block in model.vit.blocks]
    list(run_orders(model, images, orders))
    for hook in hooks:
        hook.remove()
    return passes


def subsets_in_sequence(depth):
    """All choices of one or more layers, in the layers' sequence."""
    orders = []
    for length in range(1, depth + 1):
        orders += [Order(layers) for layers in combinations(range(depth), length)]
    return orders


def test_a_shared_prefix_runs_once(small, images):
    model = small(depth=10)

    # Each subset is one step beyond the subset without its last layer.
    subsets = subsets_in_sequence(10)
    assert count_passes(model, images[:1], subsets) == len(subsets) == 1023
    assert sum(len(order) for order in subsets) == 5_120  # each by itself

    # Of "0 1 2" and "0 1 3", the first two steps run once.
    assert count_passes(model, images[:1], [Order("0 1 2"), Order("0 1 3"), Order("1 0")]) == 6


def test_no_more_than_one_activation_per_depth_is_held(small, images, monkeypatch):
    model = small(depth=8)
    run_step = model.run_step
    alive = weakref.WeakSet()
    most_alive = 0

    def counted(tokens, step, position, read):
        nonlocal most_alive
        after, logits = run_step(tokens, step, position, read)
        alive.add(after.tokens)
        most_alive = max(most_alive, len(alive))
        return after, logits

    monkeypatch.setattr(model, "run_step", counted)
    with torch.inference_mode():
        for _ in run_orders(model, images, subsets_in_sequence(8)):
            pass
    assert most_alive == 8  # the longest branch; 255 steps were run


class Answer(nn.Module):
    """A model that answers by its order alone, whatever the image.

    At position 0, layer n adds (n + 1) / 10 to the logit of class n, at position 1 (n + 1) / 100 and so on. The first
    layer's class therefore is the answer.
    """

    order = Order("0 1 2")

    def check(self, order):
        return Order(order).check(3)

    def embed(self, images):
        return torch.zeros(len(images), 7) + images[:, 0, :1, 0]

    def run_step(self, tokens, step, position, read):
        layer = step.units[0].layer
        added = 10 ** -(position + 1) * (1 + layer) * torch.eye(7)[layer]
        return tokens + added, None

    def classify(self, tokens, position_logits=(), positions=()):
        from layershuffle import Output

        return Output(tokens[:, :7])


def answer(order):
    """The class that Answer gives in an order."""
    return order[0].units[0].layer


def loader(labels, batch_size=2):
    """Batches of black images with these labels."""
    images = torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8)
    return DataLoader(list(zip(images, labels)), batch_size)


def cpu():
    return Fabric(accelerator="cpu", devices=1)


class ToFloat(nn.Module):
    def forward(self, images):
        return images.float()


def test_scores_against_counting_by_hand():
    labels = [2, 2, 0, 1, 2]
    to_score = [Trial("given", Order("2 0 1")), Trial("given", Order("0"))]

    first, second = evaluate(Answer(), ToFloat(), loader(labels), to_score, cpu())

    assert first.images == 5
    assert first.top1 == 3 / 5
    assert first.top5 == 1.0
    logits_of_first = torch.tensor([0.01, 0.002, 0.3, 0, 0, 0, 0])
    probabilities = torch.softmax(logits_of_first, dim=0)
    loss = -sum(math.log(probabilities[label]) for label in labels) / 5
    assert first.loss == pytest.approx(loss, rel=1e-6)

    assert second.top1 == 1 / 5
    assert second.order == "0"
    assert second.position_accuracy is None


def test_logits_that_are_not_numbers_are_wrong(small):
    class Broken(Answer):
        order = Order("0 1")

        def classify(self, tokens, position_logits=(), positions=()):
            # Class 0 and position 0 would be predicted rightly if NaN passed for the largest number.
            nan = torch.full_like(tokens, math.nan)
            return Answer.classify(self, nan)._replace(position_logits=nan[None], positions=[0])

    to_score = [Trial("given", Order("0"))]
    (broken,) = evaluate(Broken(), ToFloat(), loader([0, 0, 0]), to_score, cpu())
    assert broken.images == 3
    assert broken.nan == 3
    assert broken.top1 == 0
    assert broken.top5 == 0
    assert broken.position_accuracy == 0
    assert broken.loss is None

    (whole,) = evaluate(Answer(), ToFloat(), loader([0, 0, 0]), to_score, cpu())
    assert whole.nan == 0
    assert whole.top1 == 1
    assert whole.top5 == 1


def test_a_fresh_order_for_every_batch():
    ran = []

    class Spy(Answer):
        def run_step(self, tokens, step, position, read):
            ran.append(step.units[0].layer)
            return super().run_step(tokens, step, position, read)

    labels = [0] * 24  # 12 batches of two images
    (score,) = evaluate(Spy(), ToFloat(), loader(labels), [Trial("arbitrary", None)], cpu(), seed=3)

    orders = [Order(ran[start : start + 3]) for start in range(0, len(ran), 3)]
    assert orders == [permutation(3, seeded(3, "per batch", batch)) for batch in range(12)]
    assert len(set(orders)) > 1
    right = [order for order in orders if answer(order) == 0]
    assert score.top1 == len(right) / 12
    assert score.order is None


def test_pruned_layers_in_a_fresh_order_for_every_batch():
    """Also beside other fresh orders, and in a model whose base order isn't the layers' sequence."""
    label_of_batch = [0, 1, 2] * 4
    labels = [label for label in label_of_batch for _ in range(2)]
    for base_order in (Order("0 1 2"), Order("2 0 1")):
        all_trials = trials(["arbitrary", "pruned"], base_order, random_orders=1, depths=(1, 2))
        per_batch = [trial for trial in all_trials if callable(trial.order)]
        assert [trial.variant["kept"] for trial in per_batch] == [1, 2]

        to_score = [Trial("arbitrary", None), *per_batch]
        _, *scores = evaluate(Answer(), ToFloat(), loader(labels), to_score, cpu(), seed=3)

        for kept, score in zip((1, 2), scores):
            orders = []
            for batch in range(12):
                rng = seeded(3, "per batch", batch)
                orders.append(random_subset(kept, 3, rng).shuffled(rng).over(base_order))
            assert len(set(orders)) > 2
            right = [order for order, label in zip(orders, label_of_batch) if answer(order) == label]
            assert score.top1 == len(right) / 12
            assert score.order is None


def test_position_accuracy_counts_steps_and_images(small, images):
    model = small(position="predict")
    order = Order("2 0 1")
    position_logits = model(images, order).position_logits
    right = 0
    for position in range(3):
        for image in range(3):
            right += int(position_logits[position, image].argmax()) == position

    batches = DataLoader(list(zip(images, [0, 1, 2])), batch_size=2)
    (score,) = evaluate(model, nn.Identity(), batches, [Trial("given", order)], cpu())

    assert score.position_accuracy == pytest.approx(right / 9)


def test_orders_that_cannot_run_fail_before_the_first_batch(small):
    def unread():
        raise AssertionError("read a batch")
        yield

    with pytest.raises(ValueError, match="layer 4"):
        evaluate(small(), nn.Identity(), unread(), [Trial("given", Order("4"))], cpu())


def test_protocols():
    # What one protocol has no use for is no mistake.
    settings = {"random_orders": 5, "keep": (2, 4), "orders": (Order("3 (1|2)"),), "seed": 1}
    assert list(PROTOCOLS)[:4] == ["sequential", "arbitrary", "pruned", "failing"]
    assert trials(["sequential"], 4, **settings) == [Trial("sequential", sequential(4))]
    assert trials(["given"], 4, **settings) == [Trial("given", Order("3 (1|2)"), {"order": "3 (1|2)"})]

    arbitrary = trials(["arbitrary"], 12, **settings)
    per_batch, *fixed = arbitrary
    assert per_batch == Trial("arbitrary", None, {"reading": "per batch"})
    assert len({trial.order for trial in fixed}) == 5
    assert all(sorted(trial.order) == list(sequential(12)) for trial in fixed)
    assert trials(["arbitrary"], 12, **settings) == arbitrary
    assert trials(["arbitrary"], 12, **settings | {"seed": 2}) != arbitrary


def test_pruned_orders_by_every_strategy_in_both_sequences():
    by_variant = {}
    for trial in trials(["pruned"], 12, random_orders=5, depths=(3, 6)):
        by_variant.setdefault(tuple(trial.variant.values()), []).append(trial.order)
    variants = set(product((3, 6), ("first", "even", "random"), ("original", "random")))
    variants |= {(3, "random", "per batch"), (6, "random", "per batch")}
    assert by_variant.keys() == variants

    assert by_variant[3, "first", "original"] == [Order("0 1 2")]
    assert by_variant[6, "even", "original"] == [Order("0 2 4 6 8 10")]
    for order in by_variant[3, "first", "random"]:
        assert order.layers == {0, 1, 2}

    for kept in (3, 6):
        (draw,) = by_variant.pop((kept, "random", "per batch"))
        sampled = [draw(seeded(0, batch)) for batch in range(5)]
        assert draw(seeded(0, 0)) == sampled[0]
        assert all(len(order.layers) == len(order) == kept for order in sampled)
        assert not all(list(order) == sorted(order) for order in sampled)

    for (kept, strategy, sequence), orders in by_variant.items():
        is_random = strategy == "random" or sequence == "random"
        assert len(orders) == (5 if is_random else 1)
        assert all(len(order.layers) == len(order) == kept for order in orders)
        all_in_sequence = all(list(order) == sorted(order) for order in orders)
        assert all_in_sequence == (sequence == "original")

    # By default, there are all numbers of layers. Each has seven trials: three strategies in two sequences, and orders
    # per batch.
    kept_by_default = [trial.variant["kept"] for trial in trials(["pruned"], 4, random_orders=1)]
    assert kept_by_default[::7] == [1, 2, 3, 4]


def test_protocols_that_ask_too_much():
    with pytest.raises(ValueError, match="shuffled: .* sequential"):
        trials(["shuffled"], 12)
    with pytest.raises(ValueError, match="nothing to score"):
        trials(["failing"], 12, dead=())
    with pytest.raises(ValueError, match="--order"):
        trials(["given"], 12)
    with pytest.raises(ValueError, match="13 layers .* 12"):
        trials(["pruned"], 12, depths=(13,))
