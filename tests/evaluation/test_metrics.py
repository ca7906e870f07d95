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
    one, other = logits
    expected_of_one = float(multiclass_calibration_error(one, labels, 4, n_bins=15))
    expected_of_other = float(multiclass_calibration_error(other, labels, 4, n_bins=15))
    assert expected_of_one != pytest.approx(expected_of_other, abs=0.01)

    # The first row counts the other logits, and the rows from the second on both.
    metrics = OrderMetrics(3)
    for batch in (slice(0, 150), slice(150, 200)):
        metrics.update(1, [Output(one[batch]), Output(other[batch])], labels[batch])
        metrics.update(0, [Output(other[batch])], labels[batch])

    errors = [score.ece for score in metrics.compute()]
    assert errors == pytest.approx([expected_of_other, expected_of_one, expected_of_other], abs=2e-6)


def test_calibration_of_certain_predictions_and_of_those_that_are_not_numbers():
    certain = torch.tensor([[0.0, 100.0]] * 4)  # their probability is exactly 1
    metrics = OrderMetrics(1)

    # One of four is wrong.
    metrics.update(0, [Output(certain)], torch.tensor([1, 1, 1, 0]))
    assert metrics.compute()[0].ece == 1 / 4

    # Four more are wrong, but their probability counts as 0, so that they add no error.
    metrics.update(0, [Output(certain + math.nan)], torch.tensor([1, 1, 1, 1]))
    assert metrics.compute()[0].ece == 1 / 8


@pytest.mark.parametrize("counted_at_once", [1, 30, 1000])
def test_outputs_that_are_counted_together_are_counted_in_their_rows(monkeypatch, counted_at_once):
    """Five outputs of 4 numbers for logits and 6 for positions: one at a time, three at a time, and all at once."""
    monkeypatch.setattr(metrics_file, "BUFFER_SIZE", counted_at_once)
    outputs = [Output(torch.randn(2, 2), torch.randn(1, 2, 3), [0]) for _ in range(5)]
    labels = torch.tensor([0, 1])
    together = OrderMetrics(6)
    alone = OrderMetrics(6)

    buffer = OutputBuffer(together, labels)
    for row, output in enumerate(outputs):
        buffer.add(output)
        alone.update(row, [output], labels)
    buffer.flush()

    assert together.images.tolist() == [2, 2, 2, 2, 2, 0]
    for name in together._defaults:
        assert torch.equal(getattr(together, name), getattr(alone, name)), name
