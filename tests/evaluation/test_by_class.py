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
OWN = Order("0 1 2")
ONE = Order("1 0 2")
OTHER = Order("2 1 0")
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
    measured = counted(logits, labels)

    assert measured.images == labels.bincount(minlength=CLASSES).tolist()
    assert len(set(measured.images)) > 2
    groups = [(counts.protocol, counts.variant, counts.samples) for counts in measured.orders]
    assert groups == [("sequential", {}, 1), ("arbitrary", FIXED, 2), ("given", {"order": "1 0 2"}, 1)]

    for counts, orders in zip(measured.orders, ([OWN], [ONE, OTHER], [ONE])):
        all_logits = torch.cat([logits[order] for order in orders])
        all_labels = labels.repeat(len(orders))

        accuracies = multiclass_accuracy(all_logits, all_labels, CLASSES, average=None)
        for class_index, right in enumerate(counts.right):
            images = counts.samples * measured.images[class_index]
            accuracy = right / images if images else 0
            assert accuracy == pytest.approx(accuracies[class_index].item())

        # Its rows are the true classes. The diagonal and the listed mistakes are all that it has.
        confusion = multiclass_confusion_matrix(all_logits, all_labels, CLASSES)
        assert counts.right == confusion.diagonal().tolist()
        for true, predicted, count in counts.confused:
            assert count == confusion[true, predicted]
            confusion[true, predicted] = 0
        assert int(confusion.sum()) == sum(counts.right)

        counts_of_mistakes = [count for _true, _predicted, count in counts.confused]
        assert counts_of_mistakes == sorted(counts_of_mistakes, reverse=True)


def test_an_image_whose_logits_are_not_numbers_is_of_no_class(labels, logits):
    before = counted(logits, labels).orders[0]
    is_right = logits[OWN].argmax(dim=1) == labels
    image = int(is_right.nonzero()[0])
    logits[OWN][image, 0] = math.nan

    after = counted(logits, labels).orders[0]

    assert after.balanced_accuracy < before.balanced_accuracy
    assert after.macro_f1 < before.macro_f1
    # The image is missing among those that are right, and isn't among the mistakes.
    before.right[labels[image]] -= 1
    assert after.right == before.right
    means = {"balanced_accuracy": None, "macro_f1": None}
    assert replace(after, **means) == replace(before, **means)


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
