"""Weights are never "averaged" without an update."""

import math

import pytest
import torch
from helpers import DIGITS, QUIET, train
from lightning.pytorch.callbacks import EMAWeightAveraging

from layershuffle.checkpoints.loading import load
from layershuffle.errors import UserError
from layershuffle.models.weights import read_file
from layershuffle.training.averaging import check_averages


def test_an_average_that_begins_after_the_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*DIGITS, *QUIET, "--model.timm_args.depth=1", "--trainer.max_steps=2"]
    command += ["--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.update_starting_at_step=9"]
    with pytest.raises(UserError, match="EMAWeightAveraging averages no weights in the 2 steps"):
        train(command)


def test_a_best_checkpoint_of_weights_alone_has_the_averages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*DIGITS, *QUIET, "--model.timm_args.depth=1", "--trainer.max_epochs=1"]
    command += ["--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0.9", "--data.train_images=300"]
    train(command)
    train([*command, "--checkpoint.save_weights_only=true"])
    whole, alone = (read_file(f"runs/version_{run}/checkpoints/best.ckpt") for run in (0, 1))
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, alone["state_dict"][name])
    raw, averaged = (whole[entry]["model.vit.norm.weight"] for entry in ("current_model_state", "state_dict"))
    assert not torch.equal(raw, averaged)
    assert not {"optimizer_states", "current_model_state", "averaging_state"} & alone.keys()
    assert load("runs/version_1/checkpoints/best.ckpt").model.depth == 1

    # Such a file can't be continued from, but the last checkpoint is whole.
    with pytest.raises(UserError, match="--model.pretrained"):
        train([*command, "--trainer.max_epochs=2", "--ckpt_path=runs/version_1/checkpoints/best.ckpt"])
    last = train([*command, "--checkpoint.save_weights_only=true", "--resume"])
    assert last.global_step == 4


def test_an_average_that_is_updated_once_is_enough():
    for works in ({"update_starting_at_step": 3}, {"update_every_n_steps": 9}, {"update_starting_at_epoch": 0}):
        check_averages([EMAWeightAveraging(**works)], 4, 1)
    late = EMAWeightAveraging(update_starting_at_step=4)
    check_averages([late], math.inf, None)
    with pytest.raises(UserError):
        check_averages([late], 4, 1)
