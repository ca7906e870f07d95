"""How long a training lasts: a number of steps, or of layer executions."""

from typing import Literal

import lightning.pytorch as pl

from layershuffle.training.compute import Compute

BudgetUnit = Literal["steps", "layer_executions"]
"""What a budget is counted in."""


class Budget:
    """How much a training may use, and how much of it is used up.

    In units of "steps" the trainer's ``max_epochs`` and ``max_steps`` end the run. In units of "layer_executions"
    (images x layers that they ran through) a step that runs half of the layers counts for half, so the run has more
    steps than the trainer would allow. Then the budget takes the trainer's limits away and ends the run by itself.

    Args:
        unit: what is counted.
        compute: what the training has used up. The module counts there.

    Attributes:
        planned_steps: how many steps the run has if all of them run all layers; 0 before ``plan``, and infinite without
            a limit.
    """

    def __init__(self, unit: BudgetUnit, compute: Compute) -> None:
        self.unit = unit
        self.compute = compute
        self.planned_steps: float = 0
        # The trainer's limits, as Lightning has them: -1 is no limit, and None leaves the end to the other one.
        self._max_epochs: int | None = None
        self._max_steps = -1

    # --- The trainer's limits -------------------------------------------------------------------------------

    def take_limits(self, trainer: pl.Trainer) -> None:
        """Note the trainer's limits, and take them away if this budget ends the run by itself.

        This must happen before a run is resumed: if it had done as many epochs, the trainer would not begin.
        """
        self._max_epochs = trainer.fit_loop.max_epochs
        self._max_steps = trainer.fit_loop.max_steps
        if self.ends_the_run:
            _set_limits(trainer, max_epochs=-1, max_steps=-1)

    def plan(self, trainer: pl.Trainer) -> None:
        """Ask the trainer how many steps its limits allow. It reads the first images for that."""
        # Without limits the trainer would plan for ever.
        if self.ends_the_run:
            self.give_limits_back(trainer)
        self.planned_steps = trainer.estimated_stepping_batches
        if self.ends_the_run:
            _set_limits(trainer, max_epochs=-1, max_steps=-1)

    def give_limits_back(self, trainer: pl.Trainer) -> None:
        """Set the trainer's limits to those that ``take_limits`` found."""
        _set_limits(trainer, self._max_epochs, self._max_steps)

    @property
    def ends_the_run(self) -> bool:
        """Whether this budget, not the trainer, ends the run. A run of 0 steps is left to the trainer."""
        return self.unit == "layer_executions" and 0 not in (self._max_epochs, self._max_steps)

    @property
    def has_end(self) -> bool:
        """Whether the trainer has a limit."""
        return (self._max_epochs, self._max_steps) != (-1, -1)

    # --- What is used up ------------------------------------------------------------------------------------

    def used(self, step: int) -> float:
        """How many of the planned steps are used up when ``step``, which is the next one, begins."""
        if self.unit == "steps":
            return step
        return self.compute.full_steps

    def progress(self, step: int) -> float:
        """The share of the budget that is used up when ``step`` begins, from 0 to 1, or 0 if nothing is planned."""
        if self.planned_steps <= 0:
            return 0.0
        # The last step may take a bit more than is left.
        return min(1.0, self.used(step) / self.planned_steps)

    def stop_if_used_up(self, trainer: pl.Trainer) -> None:
        """Tell the trainer to stop if this budget ends the run and nothing of it is left."""
        if self.ends_the_run and self.used(trainer.global_step) >= self.planned_steps:
            trainer.should_stop = True


def _set_limits(trainer: pl.Trainer, max_epochs: int | None, max_steps: int) -> None:
    trainer.fit_loop.max_epochs = max_epochs
    trainer.fit_loop.epoch_loop.max_steps = max_steps
