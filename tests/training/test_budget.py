"""The budget by itself. test_module.py has whole runs."""

import math

import pytest
from lightning.pytorch import Trainer

from layershuffle.training.budget import Budget
from layershuffle.training.compute import Compute


def trainer(**limits):
    """A quiet trainer, of which only the limits matter."""
    return Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False, **limits)


def limits_of(run):
    """The numbers of epochs and steps after which a trainer ends; -1 is no limit."""
    return run.fit_loop.max_epochs, run.fit_loop.max_steps


@pytest.mark.parametrize(
    ("unit", "limits", "taken"),
    [
        ("steps", {"max_epochs": 3}, (3, -1)),
        ("layer_executions", {"max_epochs": 3}, (-1, -1)),
        ("layer_executions", {"max_epochs": 3, "max_steps": 5}, (-1, -1)),
        # Such a run does nothing, which the trainer knows best.
        ("layer_executions", {"max_epochs": 0}, (0, -1)),
        ("layer_executions", {"max_steps": 0, "max_epochs": 2}, (2, 0)),
    ],
)
def test_the_trainers_limits_are_taken_away_only_to_count_otherwise_and_given_back(unit, limits, taken):
    run = trainer(**limits)
    before = limits_of(run)
    budget = Budget(unit, Compute())
    budget.take_limits(run)
    assert limits_of(run) == taken
    assert budget.has_end
    budget.give_limits_back(run)
    assert limits_of(run) == before


def test_a_run_without_limits_has_no_end():
    budget = Budget("steps", Compute())
    budget.take_limits(trainer(max_epochs=-1))
    assert not budget.has_end


def test_what_is_used_up_is_counted_in_steps_or_full_steps():
    compute = Compute(full_steps=3.5)
    in_steps = Budget("steps", compute)
    in_executions = Budget("layer_executions", compute)
    # Nothing is planned yet.
    assert in_steps.progress(5) == 0.0
    assert in_executions.progress(5) == 0.0

    in_steps.planned_steps = 10
    in_executions.planned_steps = 10
    assert in_steps.used(5) == 5
    assert in_steps.progress(5) == 0.5
    assert in_executions.used(5) == 3.5
    assert in_executions.progress(5) == 0.35

    # More than all of it is still the whole progress, and a part of infinitely many steps is none.
    compute.full_steps = 12.0
    assert in_executions.progress(5) == 1.0
    in_steps.planned_steps = math.inf
    assert in_steps.progress(5) == 0.0


def test_a_resumed_run_goes_on_counting():
    compute = Compute(images=7, seconds=3.0)
    budget = Budget("layer_executions", compute)
    compute.restore({"images": 100, "full_steps": 2.5})

    assert compute == Compute(images=100, full_steps=2.5)
    assert budget.used(0) == 2.5
