"""What notices that a loss or a weight is NaN or infinite. test_faults.py has the runs that it stops."""

import torch
from torch.nn import Parameter

from layershuffle.training.non_finite import FirstNonFiniteLoss, all_finite
from layershuffle.training.step_file import BatchPlace


def test_the_first_bad_batch_is_remembered():
    losses = FirstNonFiniteLoss()
    assert losses.read() is None
    assert losses.newest is None

    for number, loss in enumerate([1.0, 2.0]):
        losses.note(torch.tensor(loss), BatchPlace(number, 0, number))
    assert losses.read() is None
    assert losses.newest == (1, 0, 1)

    # Steps 2 to 5 are the second epoch. Of these, 3 and 5 are bad.
    for number, loss in enumerate([1.0, float("inf"), 2.0, float("nan")]):
        losses.note(torch.tensor(loss), BatchPlace(2 + number, 1, number))
    assert losses.read() == (3, 1, 1)


def test_weights_are_finite_up_to_the_largest_number():
    assert all_finite([Parameter(torch.full((3,), 3e38)), Parameter(torch.ones(0))])
    assert not all_finite([Parameter(torch.ones(2)), Parameter(torch.tensor([1.0, float("nan")]))])
