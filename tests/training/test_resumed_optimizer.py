"""The state of an optimizer in a checkpoint must be one that the optimizer of the command can go on with."""

import pytest
import torch
from torch.optim import Adam

from layershuffle.errors import UserError
from layershuffle.training.resumed_optimizer import check_optimizer


def test_files_without_the_optimizers_name_are_judged_by_its_options():
    parameter = torch.nn.Parameter(torch.ones(1))
    of_sgd = {"optimizer_states": [torch.optim.SGD([parameter], lr=1, momentum=0.9).state_dict()]}
    of_adam = {"optimizer_states": [Adam([parameter]).state_dict()]}

    with pytest.raises(UserError, match=r"momentum.*Adam"):
        check_optimizer(of_sgd, Adam([parameter]))
    # AdamW has the same options as Adam.
    check_optimizer(of_adam, torch.optim.AdamW([parameter]))
    check_optimizer({}, Adam([parameter]))
