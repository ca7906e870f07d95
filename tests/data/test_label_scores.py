"""Scores of several labels for each image, compared with scikit-learn and with the formulas written out."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from layershuffle.data.label_scores import (
    NEUTRAL,
    AveragePrecision,
    average_precisions,
    best_thresholds,
    macro_f1,
    probabilities_of,
)

rng = torch.Generator().manual_seed(0)
# For 60 images and 5 classes. Rounded so that some are equal.
LOGITS = torch.randn(60, 5, generator=rng).round(decimals=1)
# Some classes are frequent and some rare, and no image shows the last one.
FREQUENCIES = torch.tensor([0.1, 0.3, 0.5, 0.9, 0.0])
LABELS = (torch.rand(60, 5, generator=rng) < FREQUENCIES).to(torch.uint8)
PROBABILITIES = probabilities_of(LOGITS)


def test_average_precision_is_scikit_learns():
    found = average_precisions(PROBABILITIES, LABELS)
    expected = average_precision_score(LABELS[:, :4].numpy(), PROBABILITIES[:, :4].numpy(), average=None)
    np.testing.assert_allclose(found[:4], expected, rtol=1e-5)
    # No image shows the last class, which is left out of the mean.
    assert found[4].isnan()


def test_the_metric_puts_batches_together():
    metric = AveragePrecision()
    for logits, labels in zip(LOGITS.split(7), LABELS.split(7)):
        metric.update(logits, labels)
    assert metric.compute() == pytest.approx(float(average_precisions(PROBABILITIES, LABELS)[:4].mean()))
    assert metric.best_thresholds() == best_thresholds(PROBABILITIES, LABELS)


def test_no_threshold_has_a_higher_f1():
    thresholds = best_thresholds(PROBABILITIES, LABELS)
    assert thresholds[4] == NEUTRAL
    for label in range(4):
        labels = LABELS[:, label]
        probabilities = PROBABILITIES[:, label]
        # Between two probabilities, every threshold names the same images.
        f1_of_threshold = {}
        for threshold in probabilities.tolist():
            f1_of_threshold[threshold] = f1_score(labels, probabilities >= threshold)
        assert f1_of_threshold[thresholds[label]] == max(f1_of_threshold.values())


def test_f1_leaves_out_classes_that_are_neither_there_nor_named():
    named = PROBABILITIES >= 0.5
    named[:, 4] = False
    expected = f1_score(LABELS[:, :4], named[:, :4], average="macro")
    assert float(macro_f1(named, LABELS)) == pytest.approx(expected)
    # A class that is named and not there counts as 0.
    named[0, 4] = True
    assert float(macro_f1(named, LABELS)) == pytest.approx(4 / 5 * expected)


def test_nan_is_no_label():
    assert probabilities_of(torch.tensor([torch.nan, 0.0])).tolist() == [0.0, 0.5]
