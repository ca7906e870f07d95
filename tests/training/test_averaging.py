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
    command = [
        *DIGITS,
        *QUIET,
        "--model.timm_args.depth=1",
        "--data.train_images=300",
        "--trainer.max_epochs=1",
        "--trainer.callbacks=EMAWeightAveraging",
        "--trainer.callbacks.decay=0.9",
    ]
    weights_only = "--checkpoint.save_weights_only=true"
    train(command)
    train([*command, weights_only])

    whole = read_file("runs/version_0/checkpoints/best.ckpt")
    alone = read_file("runs/version_1/checkpoints/best.ckpt")
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, alone["state_dict"][name])
    trained = whole["current_model_state"]["model.vit.norm.weight"]
    averaged = whole["state_dict"]["model.vit.norm.weight"]
    assert not torch.equal(trained, averaged)
    assert not {"optimizer_states", "current_model_state", "averaging_state"} & alone.keys()
    assert load("runs/version_1/checkpoints/best.ckpt").model.depth == 1

    # Such a file can't be continued from, but the last checkpoint is whole.
    with pytest.raises(UserError, match="--model.pretrained"):
        train([*command, "--trainer.max_epochs=2", "--ckpt_path=runs/version_1/checkpoints/best.ckpt"])
    resumed = train([*command, weights_only, "--resume"])
    assert resumed.global_step == 4


def test_an_average_that_is_updated_once_is_enough():
    steps = 4
    epochs = 1
    for works in ({"update_starting_at_step": 3}, {"update_every_n_steps": 9}, {"update_starting_at_epoch": 0}):
        check_averages([EMAWeightAveraging(**works)], steps, epochs)

    # The last of four steps is number 3. A run without an end reaches number 4, too.
    late = EMAWeightAveraging(update_starting_at_step=4)
    check_averages([late], math.inf, None)
    with pytest.raises(UserError):
        check_averages([late], steps, epochs)
