"""The learning rate by itself. test_module.py has whole runs."""

import math

import pytest
import torch
from torch.optim import SGD

from layershuffle.errors import UserError
from layershuffle.training.budget import Budget
from layershuffle.training.compute import Compute
from layershuffle.training.optimizer import make_optimizer
from layershuffle.training.schedule import Schedule, make_scheduler, set_rates_again


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule(), [1, 1, 1, 1, 1]),
        (Schedule("linear"), [1, 0.75, 0.5, 0.25, 0]),
        (Schedule("cosine"), [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0]),
        (Schedule(warmup_steps=2), [1 / 3, 2 / 3, 1, 1, 1]),
        (Schedule("linear", warmup_steps=0.5), [1 / 3, 2 / 3, 1, 0.5, 0]),
    ],
)
def test_factors_over_four_steps(schedule, expected):
    assert [schedule.factor(step, 4) for step in range(5)] == pytest.approx(expected)


def test_after_the_end_the_rate_stays():
    assert Schedule("linear").factor(5.5, 4) == 0


def test_before_anything_is_planned_the_factor_is_one():
    for shape in ("constant", "linear", "cosine"):
        assert Schedule(shape).factor(0, 0) == 1


def test_some_schedules_need_an_end():
    endless = Budget("steps", Compute())
    endless._max_epochs = -1
    for schedule in (Schedule(), Schedule(warmup_steps=5)):
        schedule.check_end(endless)
    for schedule in (Schedule(warmup_steps=0.5), Schedule("linear")):
        with pytest.raises(UserError, match="needs an end"):
            schedule.check_end(endless)


@pytest.mark.parametrize("steps", [-5, math.nan, math.inf])
def test_a_warmup_of_no_number_of_steps_is_refused(steps):
    with pytest.raises(UserError, match="warmup_steps"):
        Schedule(warmup_steps=steps)


def test_rates_are_set_again_once_the_number_of_steps_is_known():
    budget = Budget("steps", Compute())
    optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=3.0)
    scheduler = make_scheduler(optimizer, Schedule(warmup_steps=0.5), budget)
    assert optimizer.param_groups[0]["lr"] == 3.0

    # Half of four steps are warm-up, in which the first step has a third of the rate.
    budget.planned_steps = 4
    set_rates_again(scheduler)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1.0)


def test_groups_keep_the_names_and_scale_the_rate():
    weight = torch.nn.Parameter(torch.ones(2))
    bias = torch.nn.Parameter(torch.ones(1))
    frozen = torch.nn.Parameter(torch.ones(1), requires_grad=False)
    named = [("weight", weight), ("bias", bias), ("frozen", frozen)]

    groups = [{"params": [weight], "lr_scale": 0.5}, {"params": [bias], "lr_scale": 1.0}]
    optimizer = make_optimizer(lambda parameters: SGD(parameters, lr=2.0), named, groups)
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"], ["bias"]]
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 2.0]

    without_groups = make_optimizer(lambda parameters: SGD(parameters, lr=2.0), named)
    assert without_groups.param_groups[0]["param_names"] == ["weight", "bias"]

    with pytest.raises(UserError, match="the optimizer can't be made"):
        make_optimizer(lambda parameters: SGD(parameters, lr=-1.0), named)
