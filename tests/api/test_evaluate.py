"""What ``layershuffle.evaluate`` takes for a model, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest

from layershuffle.api.evaluate import evaluate
from layershuffle.api.study import as_loaded
from layershuffle.api.train import TrainedRun
from layershuffle.checkpoints.loading import load
from layershuffle.data import Glyphs
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


@pytest.mark.parametrize("updates", [0, 1])
def test_a_checkpoint_of_0_updates_is_warned_of(caplog, updates):
    loaded = load("mini_glyphs")
    loaded = replace(loaded, info=replace(loaded.info, compute={"updates": updates}))
    evaluate(loaded, Glyphs(test_images=20), accelerator="cpu")
    assert any("0 updates" in text for text in caplog.messages) == (updates == 0)
