"""No callback takes the worst epoch for the best."""

import pytest
import torch
from helpers import DIGITS, QUIET, train
from lightning.pytorch.callbacks import EarlyStopping

from layershuffle.errors import UserError
from layershuffle.training.directions import check_monitors, checked_mode, direction
from layershuffle.training.module import FineTuner

SHORT = [*DIGITS, *QUIET, "--model.timm_args.depth=1", "--data.train_images=200", "--trainer.max_epochs=3"]


@pytest.fixture
def rising(tmp_path, monkeypatch):
    """The command of a run in an empty folder, whose val/sequential rises in every epoch; no other metric changes."""
    monkeypatch.chdir(tmp_path)
    scores = iter([0.1, 0.2, 0.3])

    def validation_step(module, batch, batch_idx):
        if batch_idx == 0:
            module.log("val/sequential", torch.tensor(next(scores)), batch_size=len(batch[1]))
            module.log("val/own", torch.tensor(0.0), batch_size=len(batch[1]))

    monkeypatch.setattr(FineTuner, "validation_step", validation_step)
    return [*SHORT, "--trainer.num_sanity_val_steps=0"]


def test_the_best_checkpoint_has_the_highest_accuracy(rising):
    trainer = train([*rising, "--checkpoint.monitor=val/sequential"])

    best = torch.load(trainer.default_root_dir + "/runs/version_0/checkpoints/best.ckpt", weights_only=True)
    assert best["epoch"] == 2  # the last of three


def test_early_stopping_on_an_accuracy_must_wait_for_higher_ones(rising):
    stopping = [
        "--checkpoint.monitor=val/sequential",
        "--trainer.callbacks=EarlyStopping",
        "--trainer.callbacks.monitor=val/sequential",
        "--trainer.callbacks.patience=1",
    ]
    with pytest.raises(UserError, match=r"EarlyStopping.*use max"):
        train([*rising, *stopping])

    trainer = train([*rising, *stopping, "--trainer.callbacks.mode=max"])
    assert trainer.current_epoch == 3


def test_a_wrong_mode_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for wrong in (["--checkpoint.mode=max"], ["--checkpoint.monitor=val/arbitrary", "--checkpoint.mode=min"]):
        with pytest.raises(UserError, match=r"--checkpoint\.mode"):
            train([*SHORT, *wrong])
    with pytest.raises(UserError, match=r"val/own.*--checkpoint\.mode"):
        train([*SHORT, "--checkpoint.monitor=val/own"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("val/loss", "min"), ("train/position_loss", "min"), ("val/arbitrary", "max"), ("train/accuracy", "max")],
)
def test_metrics_have_a_direction(metric, expected):
    assert direction(metric) == expected
    assert checked_mode(metric, None, "mode") == expected
    assert checked_mode(metric, expected, "mode") == expected


def test_of_other_metrics_the_author_knows_the_direction():
    assert direction("val/own") is None
    assert checked_mode("val/own", "max", "mode") == "max"
    check_monitors([EarlyStopping("val/own"), EarlyStopping("val/loss"), EarlyStopping("val/sequential", mode="max")])
    with pytest.raises(UserError, match="EarlyStopping"):
        check_monitors([EarlyStopping("val/sequential")])
