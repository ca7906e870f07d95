"""Weights are never "averaged" without an update."""

import math

import pytest
from helpers import DIGITS, QUIET, train
from lightning.pytorch.callbacks import EMAWeightAveraging

from layershuffle.errors import UserError
from layershuffle.training.averaging import check_averages


def test_an_average_that_begins_after_the_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = [*DIGITS, *QUIET, "--model.timm_args.depth=1", "--trainer.max_steps=2"]
    command += ["--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.update_starting_at_step=9"]
    with pytest.raises(UserError, match="EMAWeightAveraging averages no weights in the 2 steps"):
        train(command)


def test_an_average_that_is_updated_once_is_enough():
    for works in ({"update_starting_at_step": 3}, {"update_every_n_steps": 9}, {"update_starting_at_epoch": 0}):
        check_averages([EMAWeightAveraging(**works)], 4, 1)
    late = EMAWeightAveraging(update_starting_at_step=4)
    check_averages([late], math.inf, None)
    with pytest.raises(UserError):
        check_averages([late], 4, 1)
