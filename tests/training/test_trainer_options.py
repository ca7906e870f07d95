"""Options of Lightning's trainer: each works, or is refused in one line."""

import math
from itertools import pairwise

import pytest
from helpers import DIGITS, QUIET, configs, fails, train

from layershuffle.commands.train import train_command
from layershuffle.data.augmentation import Augmented
from layershuffle.errors import UserError
from layershuffle.training.trainer_options import make_trainer

TINY = [*DIGITS, *QUIET, "--model.timm_args.depth=2", "--data.train_images=300"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("options", "mentioned"),
    [
        ({"barebones": True}, "barebones"),
        ({"enable_checkpointing": False}, "enable_checkpointing"),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val"),
        ({"gradient_clip_val": math.nan}, "gradient_clip_val"),
        ({"check_val_every_n_epoch": 0}, "check_val_every_n_epoch"),
        ({"val_check_interval": 0}, "val_check_interval"),
        ({"val_check_interval": math.nan}, "val_check_interval"),
        ({"devices": -3, "accelerator": "cpu"}, "devices"),
        ({"limit_train_batches": 1.5}, "limit_train_batches"),
        ({"max_steps": -5}, "max_steps"),
        ({"fast_dev_run": -1}, "fast_dev_run"),
    ],
)
def test_what_makes_no_sense_is_refused(options, mentioned):
    with pytest.raises(UserError, match=mentioned):
        make_trainer(options)


@pytest.mark.parametrize("seed", ["-1", str(2**32), "nan"])
def test_a_seed_that_numpy_does_not_take_is_refused(capsys, seed):
    assert "--seed" in fails(capsys, train_command, *DIGITS, f"--seed={seed}")


@pytest.mark.parametrize(
    ("options", "mentioned"),
    [
        (["--trainer.val_check_interval=30"], "val_check_interval"),
        (["--trainer.limit_val_batches=0.5"], "limit_val_batches"),
        (["--trainer.callbacks=Timer"], "Interval.step"),
    ],
)
def test_what_only_the_run_finds_is_one_line(capsys, options, mentioned):
    assert mentioned in fails(capsys, train_command, *TINY, "--trainer.max_epochs=1", *options)


def test_overfit_batches_with_a_recipe(monkeypatch):
    """Lightning then asks for images by their indices, and each is changed in one way alone."""
    batches = []
    original = Augmented.__getitems__

    def noted(images, keys):
        items = original(images, keys)
        batches.append(items[0].clone())
        return items

    monkeypatch.setattr(Augmented, "__getitems__", noted)
    recipe = [*configs("recipe/light"), "--data.workers=0", "--trainer.num_sanity_val_steps=0"]
    run = train([*TINY, *recipe, "--trainer.max_epochs=2", "--trainer.overfit_batches=1"])

    assert run.global_step == 2
    assert any((earlier == later).all() for earlier, later in pairwise(batches))


@pytest.mark.parametrize(
    "option",
    [
        "limit_train_batches=1",
        "val_check_interval=0.5",
        "check_val_every_n_epoch=2",
        "num_sanity_val_steps=-1",
        "detect_anomaly=true",
        "reload_dataloaders_every_n_epochs=1",
        "inference_mode=false",
        "deterministic=true",
    ],
)
def test_options_that_work(option):
    trainer = train([*TINY, "--trainer.max_epochs=2", f"--trainer.{option}"])
    assert trainer.current_epoch == 2
