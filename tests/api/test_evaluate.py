"""What ``layershuffle.evaluate`` takes for a model, and what it refuses."""

from pathlib import Path

import pytest

from layershuffle.api.evaluate import evaluate
from layershuffle.api.study import as_loaded
from layershuffle.api.train import TrainedRun
from layershuffle.errors import UserError


@pytest.mark.parametrize("random_orders", [0, -1])
def test_fewer_than_one_random_order(random_orders):
    with pytest.raises(UserError, match="random_orders"):
        evaluate("mini_glyphs", random_orders=random_orders)


def test_what_train_returns_is_a_model(monkeypatch):
    """It stands for its best checkpoint, or for the last one of a training without validation."""
    loaded = []
    monkeypatch.setattr("layershuffle.api.study.load", loaded.append)
    ended = {"folder": Path("run"), "compute": None, "metrics": {}, "trainer": None}
    as_loaded(TrainedRun(best=Path("best.ckpt"), last=Path("last.ckpt"), **ended))
    as_loaded(TrainedRun(best=None, last=Path("last.ckpt"), **ended))
    assert loaded == [Path("best.ckpt"), Path("last.ckpt")]
    with pytest.raises(UserError, match="first"):
        as_loaded(TrainedRun(best=None, last=None, **ended))
