"""What is counted of many orders at once, against torchmetrics."""

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from layershuffle.evaluation import metrics as metrics_file
from layershuffle.evaluation.metrics import OrderMetrics, OutputBuffer
from layershuffle.models import Output


def test_calibration_is_that_of_torchmetrics():
    rng = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 200, 4, generator=rng)
    labels = torch.randint(4, (200,), generator=rng)
    metrics = OrderMetrics(3)
    for part in (slice(0, 150), slice(150, 200)):
        metrics.update(1, [Output(each[part]) for each in logits], labels[part])
        metrics.update(0, [Output(logits[1, part])], labels[part])
    found = [score.ece for score in metrics.compute()]
    expected = [float(multiclass_calibration_error(each, labels, 4, n_bins=15)) for each in logits]
    assert expected[0] != pytest.approx(expected[1], abs=0.01)
    assert found == pytest.approx([expected[1], *expected], abs=2e-6)


def test_calibration_of_certain_predictions_and_of_those_that_are_not_numbers():
    certain = torch.tensor([[0.0, 100.0]] * 4)  # their probability is exactly 1
    metrics = OrderMetrics(1)
    metrics.update(0, [Output(certain)], torch.tensor([1, 1, 1, 0]))
    assert metrics.compute()[0].ece == 0.25
    metrics.update(0, [Output(certain + math.nan)], torch.tensor([1, 1, 1, 1]))
    assert metrics.compute()[0].ece == 0.125


@pytest.mark.parametrize("counted_at_once", [1, 30, 1000])
def test_outputs_that_are_counted_together_are_counted_in_their_rows(monkeypatch, counted_at_once):
    """Five outputs of 4 numbers for logits and 6 for positions: one at a time, three at a time, and all at once."""
    monkeypatch.setattr(metrics_file, "BUFFER_SIZE", counted_at_once)
    outputs = [Output(torch.randn(2, 2), torch.randn(1, 2, 3), [0]) for _ in range(5)]
    labels = torch.tensor([0, 1])
    together, alone = OrderMetrics(6), OrderMetrics(6)
    counted = OutputBuffer(together, labels)
    for row, output in enumerate(outputs):
        counted.add(output)
        alone.update(row, [output], labels)
    counted.flush()
    assert together.images.tolist() == [2, 2, 2, 2, 2, 0]
    for name in together._defaults:
        assert torch.equal(getattr(together, name), getattr(alone, name)), name
