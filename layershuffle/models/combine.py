"""How what the layers of one step return becomes the next state."""

from collections.abc import Sequence

import torch
from torch import Tensor

from layershuffle.orders.order import Step


def combine(step: Step, newest: Tensor, read: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """The state after a step. All tensors are tokens [batch, tokens, dim].

    Args:
        step: the step that ran.
        newest: the state to which its change is added.
        read: the state that it read, which is ``newest`` for a step without a lag.
        outputs: what each of its units made of ``read``.
    """
    output = sum_of_changes(read, outputs) if step.summed else mean(outputs)
    # The residual connections have added the change to the state that was read. Without a lag, that is the newest one.
    if not step.lag:
        return output
    return newest + (output - read)


def sum_of_changes(read: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """``read`` plus what each of ``outputs`` changes in it."""
    # The first output contains the first change already. The others are added one by one, just as the steps of
    # "0 1<1 2<2" add theirs, so that "(0+1+2)" gives the same bits.
    total = outputs[0]
    for output in outputs[1:]:
        total = total + (output - read)
    return total


def mean(tensors: Sequence[Tensor]) -> Tensor:
    """The mean of what the layers of an averaged group return; a single layer's output stays as it is."""
    if len(tensors) == 1:
        return tensors[0]
    return torch.stack(tuple(tensors)).mean(dim=0)
