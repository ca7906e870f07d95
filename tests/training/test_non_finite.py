"""What notices that a loss or a weight is NaN or infinite. test_faults.py has the runs that it stops."""

import torch
from torch.nn import Parameter

from layershuffle.training.non_finite import NO_STEP, FirstNonFiniteStep, all_finite


def test_the_first_bad_step_is_remembered():
    watch = FirstNonFiniteStep()
    assert watch.read() == NO_STEP
    for step, loss in enumerate([1.0, float("inf"), 2.0, float("nan")]):
        watch.note(torch.tensor(loss), step)
    assert watch.read() == 1


def test_weights_are_finite_up_to_the_largest_number():
    assert all_finite([Parameter(torch.full((3,), 3e38)), Parameter(torch.ones(0))])
    assert not all_finite([Parameter(torch.ones(2)), Parameter(torch.tensor([1.0, float("nan")]))])
