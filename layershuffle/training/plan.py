"""What a run plans to do, which it says before its first step, and what it is too short for."""

import logging
import math
from dataclasses import dataclass

import lightning.pytorch as pl
from torch.optim import Optimizer

from layershuffle.plurals import counted
from layershuffle.training.budget import Budget
from layershuffle.training.schedule import Schedule
from layershuffle.training.step_orders import StepOrders
from layershuffle.training.trainable import in_sequence

logger = logging.getLogger(__name__)

FEWEST_UPDATES = 250
"""With fewer updates, models that knew one order hardly learned the others (figures: docs/findings/recipes.md)."""
ENOUGH_UPDATES = 500
"""What the warning of too few updates recommends at least."""


@dataclass(frozen=True)
class Plan:
    """What a run plans to do.

    Attributes:
        updates: how many updates it has, or would have at full depth; infinite without an end.
        done: how many of them an earlier run has done.
        epochs: how often the run sees each training image; None if nobody knows.
        in_layer_executions: whether the budget is counted in layer executions. The number of epochs is an estimate
            then, as it depends on how many layers the orders run.
        batch_size: images per batch and process; None if nobody knows.
        optimizer: the name of the optimizer's class.
        rate: the highest learning rate.
        schedule: how the learning rate changes.
        shuffles: whether layers run before those that come earlier in the model.
    """

    updates: float
    done: int
    epochs: float | None
    in_layer_executions: bool
    batch_size: int | None
    optimizer: str
    rate: float
    schedule: Schedule
    shuffles: bool

    @classmethod
    def of(cls, trainer: pl.Trainer, budget: Budget, schedule: Schedule, orders: StepOrders) -> "Plan":
        """The plan of a run that is about to take its first step."""
        optimizer: Optimizer = trainer.optimizers[0]
        batches = trainer.num_training_batches
        # Streams have an endless number of batches, and a run without an end any number of epochs.
        epochs = None
        if batches and not math.isinf(batches) and not math.isinf(budget.planned_steps):
            updates = budget.planned_steps
            # A run whose steps leave out layers has more of them than planned.
            if budget.ends_the_run:
                updates = orders.updates_within(budget.planned_steps)
            epochs = updates / math.ceil(batches / trainer.accumulate_grad_batches)
        # A data module of the user's own may have no batch size.
        data = getattr(trainer, "datamodule", None)
        return cls(
            updates=budget.planned_steps,
            done=trainer.global_step,
            epochs=epochs,
            in_layer_executions=budget.ends_the_run,
            batch_size=getattr(data, "batch_size", None),
            optimizer=type(optimizer).__name__,
            rate=max(group["initial_lr"] for group in optimizer.param_groups),
            schedule=schedule,
            shuffles=not all(in_sequence(order) for order in orders.examples),
        )

    def announce(self, trainer: pl.Trainer) -> None:
        """Log the plan in the first process, and warn of what the run is too short for."""
        if not trainer.is_global_zero:
            return
        logger.info("plan: %s", self._length())
        logger.info("%s: learning rate %g, %s", self.optimizer, self.rate, self._course())
        # A trial of a few batches is too short for everything, and is meant to be.
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        for warning in self.warnings():
            logger.warning(warning)

    def _length(self) -> str:
        """How long the run is, in words, such as "2,000 updates, 20 epochs, batches of 128 images"."""
        if math.isinf(self.updates):
            parts = ["no end"]
        elif self.in_layer_executions:
            parts = [f"layer executions of {counted(self.updates, 'update')} at full depth"]
        else:
            parts = [counted(self.updates, "update")]
        if self.epochs is not None:
            if self.in_layer_executions:
                # An estimate, which is no better than two digits.
                rounded = float(f"{self.epochs:.2g}")
                parts.append(f"about {counted(rounded, 'epoch')}")
            else:
                parts.append(counted(self.epochs, "epoch"))
        if self.batch_size is not None:
            parts.append(f"batches of {counted(self.batch_size, 'image')}")
        if self.done:
            parts.append(f"{counted(self.done, 'update')} done before")
        return ", ".join(parts)

    def _course(self) -> str:
        """How the learning rate changes, in words."""
        warmup = self.schedule.warmup(self.updates)
        if not warmup:
            return self.schedule.shape
        return f"{counted(warmup, 'update')} of warm-up, then {self.schedule.shape}"

    def warnings(self) -> list[str]:
        """What the run is too short for."""
        warnings = []

        # A warm-up of a fixed number of steps suits long runs, and short ones may spend themselves on it.
        warmup = self.schedule.warmup(self.updates)
        remedy = "give --model.schedule.warmup_steps a share of the run, such as 0.1"
        if warmup and warmup >= self.updates:
            warnings.append(
                f"the warm-up takes {counted(warmup, 'update')} and the run has only {self.updates:,.0f}, so that the "
                f"learning rate never reaches {self.rate:g}: {remedy}"
            )
        elif warmup > self.updates / 2:
            whole = counted(self.updates, "update")
            warnings.append(f"the warm-up takes {warmup:,.0f} of the run's {whole}: {remedy}")

        # A batch size that suits a GPU leaves a small data set few updates.
        if self.shuffles and self.updates < FEWEST_UPDATES:
            warnings.append(
                f"the run has only {counted(self.updates, 'update')}, too few to learn random orders; plan for at "
                f"least {ENOUGH_UPDATES}: raise --trainer.max_epochs or --trainer.max_steps, or lower --data.batch_size"
            )
        return warnings
