"""What a training goes on from: each edit of a good state is refused, in one line that names what is wrong."""

import copy
import math

import pytest
import torch

from layershuffle.checkpoints.training_state import VERSION_KEY, check_training_state
from layershuffle.errors import UserError

COUNTS = {"total": {"ready": 3, "completed": 3}, "current": {"ready": 3, "completed": 3}}
GOOD = {
    "epoch": 1,
    "global_step": 3,
    VERSION_KEY: "2.6.6",
    "loops": {
        "fit_loop": {
            "epoch_loop.state_dict": {"_batches_that_stepped": 3, "of the loader": [1.5, {"any": "thing"}]},
            "epoch_loop.batch_progress": {**COUNTS, "is_last_batch": True},
            "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": COUNTS}},
            "epoch_loop.manual_optimization.optim_step_progress": {"total": {"ready": 0, "completed": 0}},
        }
    },
    "callbacks": {"LastCheckpoint": {"monitor": None, "score": torch.tensor(math.inf)}},
    "optimizer_states": [{"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}],
    "lr_schedulers": [{"base_lrs": [0.1], "last_epoch": 3, "_step_count": 4, "lr_lambdas": [None]}],
    "processes": 1,
    "optimizer": "AdamW",
}
WRONG = ["x", 1e308, math.nan, -1, 10**30, [1, "a"], {1: 2}, None, torch.zeros(3)]
"""Values that are right in no place."""

PLACES = [
    ("epoch",),
    ("global_step",),
    (VERSION_KEY,),
    ("processes",),
    ("loops",),
    ("loops", "fit_loop"),
    ("loops", "fit_loop", "epoch_loop.state_dict", "_batches_that_stepped"),
    ("loops", "fit_loop", "epoch_loop.batch_progress"),
    ("loops", "fit_loop", "epoch_loop.batch_progress", "total", "ready"),
    ("loops", "fit_loop", "epoch_loop.automatic_optimization.optim_progress", "optimizer", "step", "total"),
    ("callbacks",),
    ("callbacks", "LastCheckpoint"),
    ("optimizer_states",),
    ("optimizer_states", 0),
    ("optimizer_states", 0, "state"),
    ("optimizer_states", 0, "param_groups"),
    ("optimizer_states", 0, "param_groups", 0, "params"),
    ("lr_schedulers",),
    ("lr_schedulers", 0),
    ("lr_schedulers", 0, "last_epoch"),
    ("lr_schedulers", 0, "_step_count"),
]


def edited(place, value):
    """A copy of GOOD with another value in one place, which is given by the keys that lead to it."""
    content = copy.deepcopy(GOOD)
    *parents, key = place
    part = content
    for parent in parents:
        part = part[parent]
    part[key] = value
    return content


def test_a_good_state():
    check_training_state(GOOD, "run.ckpt")
    older = {key: value for key, value in GOOD.items() if key not in ("processes", "optimizer")}
    check_training_state(older, "run.ckpt")


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_values_that_cannot_be(place):
    for wrong in WRONG:
        if place[-1] == "LastCheckpoint" and isinstance(wrong, dict):
            continue  # Callbacks may keep anything.
        with pytest.raises(UserError, match=r"run\.ckpt") as error:
            check_training_state(edited(place, wrong), "run.ckpt")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["loops", "optimizer_states", "lr_schedulers", VERSION_KEY])
def test_weights_alone_are_no_training(key):
    content = copy.deepcopy(GOOD)
    del content[key]
    with pytest.raises(UserError, match=r"--model\.pretrained run\.ckpt"):
        check_training_state(content, "run.ckpt")


def test_the_options_of_an_optimizer_are_plain_values():
    place = ("optimizer_states", 0, "param_groups", 0, "lr")
    check_training_state(edited(place, torch.tensor(0.1)), "run.ckpt")
    for wrong in (math.nan, 10**30, {1: 2}, torch.zeros(3)):
        with pytest.raises(UserError, match="optimizer_states"):
            check_training_state(edited(place, wrong), "run.ckpt")


def test_a_schedule_takes_no_other_attributes():
    for name in ("optimizer", "step", "get_lr", ""):
        content = edited(("lr_schedulers", 0, name), "x")
        with pytest.raises(UserError, match="lr_schedulers"):
            check_training_state(content, "run.ckpt")
