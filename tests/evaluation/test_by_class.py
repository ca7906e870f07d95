"""Counts by class, against torchmetrics."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from layershuffle.evaluation import by_class
from layershuffle.evaluation.by_class import ByClass
from layershuffle.models import Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial

CLASSES = 7
OWN, ONE, OTHER = Order("0 1 2"), Order("1 0 2"), Order("2 1 0")
FIXED = {"reading": "fixed"}
TRIALS = [
    Trial("sequential", OWN),
    Trial("arbitrary", None, {"reading": "per batch"}),
    Trial("arbitrary", ONE, FIXED),
    Trial("arbitrary", OTHER, FIXED),
    Trial("landscape", Order("0"), {"kept": 1}),
    Trial("given", ONE, {"order": "1 0 2"}),
]


def counted(logits, labels):
    """What is counted of the logits [images, classes] of each order, in batches of 30."""
    counts = ByClass(TRIALS, CLASSES)
    for first in range(0, len(labels), 30):
        for order, its_logits in logits.items():
            counts.add(order, Output(its_logits[first : first + 30]), labels[first : first + 30])
    return counts.counts()


@pytest.fixture
def labels():
    # More images of some classes than of others.
    return torch.arange(100) ** 2 % 11 % CLASSES


@pytest.fixture
def logits(labels):
    rng = torch.Generator().manual_seed(0)
    orders = [OWN, ONE, OTHER, Order("0"), Order("2 0 1")]
    return {order: torch.randn(100, CLASSES, generator=rng) + torch.eye(CLASSES)[labels] for order in orders}


def test_the_counts_are_those_of_torchmetrics(labels, logits):
    found = counted(logits, labels)
    assert found.images == labels.bincount(minlength=CLASSES).tolist()
    assert len(set(found.images)) > 2
    named = [(each.protocol, each.variant, each.samples) for each in found.orders]
    assert named == [("sequential", {}, 1), ("arbitrary", FIXED, 2), ("given", {"order": "1 0 2"}, 1)]
    for each, orders in zip(found.orders, ([OWN], [ONE, OTHER], [ONE])):
        joined = torch.cat([logits[order] for order in orders]), labels.repeat(len(orders))
        expected = multiclass_confusion_matrix(*joined, CLASSES)
        accuracies = multiclass_accuracy(*joined, CLASSES, average=None).tolist()
        assert each.right == expected.diagonal().tolist()
        images = each.samples * torch.tensor(found.images)
        assert [right / int(count) if count else 0 for right, count in zip(each.right, images)] == pytest.approx(
            accuracies
        )
        for true, predicted, count in each.confused:
            assert count == expected[true, predicted]
            expected[true, predicted] = 0
        assert int(expected.sum()) == sum(each.right)
        counts = [count for *_, count in each.confused]
        assert counts == sorted(counts, reverse=True)


def test_an_image_whose_logits_are_not_numbers_is_of_no_class(labels, logits):
    before = counted(logits, labels).orders[0]
    image = int((logits[OWN].argmax(dim=1) == labels).nonzero()[0])
    logits[OWN][image, 0] = math.nan
    after = counted(logits, labels).orders[0]
    before.right[labels[image]] -= 1
    assert after.balanced_accuracy < before.balanced_accuracy
    assert after.macro_f1 < before.macro_f1
    assert replace(after, balanced_accuracy=None, macro_f1=None) == replace(
        before, balanced_accuracy=None, macro_f1=None
    )


def test_of_many_classes_the_most_frequent_pairs_are_kept(labels, logits, monkeypatch):
    whole = counted(logits, labels).orders[0]
    monkeypatch.setattr(by_class, "MAX_PAIRS", 5)
    cut = counted(logits, labels).orders[0]
    assert len(whole.confused) > 5
    assert cut.confused == whole.confused[:5]
    assert cut.right == whole.right


def test_the_means_over_classes_are_those_of_scikit_learn(logits):
    # Few images of some classes, and none of the last one.
    labels = (torch.arange(100) ** 2 % 11).clamp(max=CLASSES - 2)
    sequential, fixed, _ = counted(logits, labels).orders
    for counts, orders in ((sequential, [OWN]), (fixed, [ONE, OTHER])):
        predicted = torch.cat([logits[order].argmax(dim=1) for order in orders])
        actual = labels.repeat(len(orders))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # It warns of the class that is predicted and has no images.
            expected = balanced_accuracy_score(actual, predicted)
        assert counts.balanced_accuracy == pytest.approx(expected, abs=1e-6)
        assert counts.macro_f1 == pytest.approx(f1_score(actual, predicted, average="macro"), abs=1e-6)
