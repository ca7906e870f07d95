"""How the learning rate changes in the course of a training."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from layershuffle.errors import UserError
from layershuffle.training.budget import Budget


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes in the course of a training.

    Attributes:
        shape: The learning rate stays "constant" (how arXiv 2407.04513 is read here), or falls to zero as "linear" (the
            authors' code) or "cosine".
        warmup_steps: Number of steps over which the learning rate first rises linearly, or if below 1, their share of
            all steps, such as 0.1.
    """

    shape: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: float = 0

    def __post_init__(self) -> None:
        # Written like this, so that NaN is refused, too.
        if not 0 <= self.warmup_steps < math.inf:
            raise UserError(f"schedule.warmup_steps is a number of steps from 0 up, not {self.warmup_steps}")

    @property
    def warmup_is_share(self) -> bool:
        """Whether ``warmup_steps`` is a share of all steps."""
        return 0 < self.warmup_steps < 1

    @property
    def needs_end(self) -> bool:
        """Whether the number of all steps decides the learning rate."""
        return self.warmup_is_share or self.shape != "constant"

    def check_end(self, budget: Budget) -> None:
        """Raise a UserError if the run has no end but the schedule needs one."""
        if budget.has_end or not self.needs_end:
            return
        warmup = "with a share as warm-up " if self.warmup_is_share else ""
        raise UserError(
            f"a {self.shape} schedule {warmup}needs an end: set --trainer.max_epochs or --trainer.max_steps"
        )

    def warmup(self, planned_steps: float) -> float:
        """The number of steps over which the learning rate rises, of so many steps in all."""
        if self.warmup_is_share:
            return round(self.warmup_steps * planned_steps)
        return self.warmup_steps

    def factor(self, used: float, planned_steps: float) -> float:
        """What the learning rate of a step is multiplied by.

        Args:
            used: how many of the planned steps are used up when the step begins.
            planned_steps: number of all steps; 0 if it isn't known yet.
        """
        # The first step of a warm-up has more than nothing, and the first one after it the whole rate.
        warmup = self.warmup(planned_steps)
        if used < warmup:
            return (used + 1) / (warmup + 1)
        if self.shape == "constant":
            return 1.0

        # When the optimizer is made, no steps are planned yet, but then nothing is used up and the factor is 1.
        share = min(1.0, (used - warmup) / max(1, planned_steps - warmup))
        if self.shape == "linear":
            return 1 - share
        return (1 + math.cos(math.pi * share)) / 2


def make_scheduler(optimizer: Optimizer, schedule: Schedule, budget: Budget) -> LambdaLR:
    """The scheduler that sets the learning rate of every step; it asks the budget how far the run has got."""

    def factor(update: int) -> float:
        return schedule.factor(budget.used(update), budget.planned_steps)

    return LambdaLR(optimizer, factor)


def set_rates_again(scheduler: LambdaLR) -> None:
    """Compute the learning rates of the coming step again, once the number of planned steps is known."""
    # torch's schedulers set the rate of a step at the end of the one before, and have no public way to do it again.
    factors: list[Callable[[int], float]] = scheduler.lr_lambdas
    for group, base_rate, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, factors):
        group["lr"] = base_rate * factor(scheduler.last_epoch)
