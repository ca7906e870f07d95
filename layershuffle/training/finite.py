"""Notices a loss or weights that are NaN or infinite, without waiting for the device in every step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class FirstNonFiniteStep:
    """The first step whose loss was not finite, kept on the device until it is asked for."""

    def __init__(self) -> None:
        self._step: Tensor | None = None

    def note(self, loss: Tensor, step: int) -> None:
        """Check the loss of a step, a scalar."""
        before = torch.full((), -1, device=loss.device) if self._step is None else self._step
        self._step = torch.where((before < 0) & ~loss.detach().isfinite(), step, before)

    def step(self) -> int:
        """The step, or -1 if all losses were finite; waits for the device."""
        return -1 if self._step is None else int(self._step)


def all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the parameters, or this process's shards of them, are finite; waits for the device."""
    local = [getattr(value, "to_local", lambda value=value: value)() for value in (p.detach() for p in parameters)]
    held = [value for value in local if value.numel()]  # some processes hold nothing of a small parameter
    return not held or bool(torch.nn.utils.get_total_norm(held, norm_type=float("inf")).isfinite())
