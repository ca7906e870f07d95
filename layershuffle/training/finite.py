"""Notices a loss that is not a number or infinite, without waiting for the device in every step."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class FirstBadStep:
    """The first step whose loss was not finite, kept on the device until somebody asks."""

    def __init__(self) -> None:
        self._step: Tensor | None = None

    def note(self, loss: Tensor, step: int) -> None:
        """Look at the loss of a step, a scalar."""
        before = torch.full((), -1, device=loss.device) if self._step is None else self._step
        self._step = torch.where((before < 0) & ~loss.detach().isfinite(), step, before)

    def step(self) -> int:
        """Which step it was, or -1; waits for the device."""
        return -1 if self._step is None else int(self._step)


def all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the parameters, or the parts of them that this process holds, are; waits for the device."""
    local = [getattr(value, "to_local", lambda value=value: value)() for value in (p.detach() for p in parameters)]
    held = [value for value in local if value.numel()]  # of a small parameter, some processes hold nothing
    return not held or bool(torch.nn.utils.get_total_norm(held, norm_type=float("inf")).isfinite())
