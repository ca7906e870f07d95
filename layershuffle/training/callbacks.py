"""Callbacks that tell what a run does: its data, its speed and its progress."""

import logging
import time
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from torch.distributed.tensor import DTensor

from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.progress_lines import ProgressLines

logger = logging.getLogger(__name__)


def is_logged(trainer: pl.Trainer, steps: int | None = None) -> bool:
    """Whether the loggers, which wait for the device, write when ``steps`` steps are done; by default now."""
    if steps is None:
        steps = trainer.global_step
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and steps % every == 0


class DescribeData(pl.Callback):
    """Begins a run by logging what its data consist of, if they are an ``ImageData``."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log it in the first process."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageData) and trainer.is_global_zero:
            logger.info(data.describe())


class ValidatesApart(pl.Callback):
    """Refuses a run whose validation images are the test images, such as one of a grid of hyper-parameters."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Raise a UserError before the first step."""
        sets = trainer.datamodule.sets  # type: ignore[attr-defined]
        if sets["val"] is sets["test"]:
            raise UserError(
                "a choice of hyper-parameters must not see the test images, which are also the validation images here: "
                "hold out a part of the training images, such as --data.val_fraction=0.05"
            )


class ThroughputLogger(pl.Callback):
    """Logs what the training has used up (see Compute), and ``train/images_per_second``, whenever the loggers write.

    Both are of all processes together. Unlike Lightning's ThroughputMonitor, this never waits for the device. A single
    value can therefore be too high, because the device may still have work to do, but the mean of the values is right.
    """

    def __init__(self) -> None:
        # Since the loggers wrote last:
        self._images = 0
        self._seconds = 0.0
        self._logged_step = 0
        # When the clock was read last:
        self._clock = 0.0

    def _restart_clock(self) -> None:
        """Leave out what has happened since the clock was read."""
        self._clock = time.perf_counter()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to count."""
        self._restart_clock()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out what happened between two epochs."""
        self._restart_clock()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out the validation."""
        self._restart_clock()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and log every log_every_n_steps steps."""
        # The clock also runs while the loader is waited for, which is part of the speed.
        compute: Any = pl_module.compute
        now = time.perf_counter()
        seconds = now - self._clock
        self._clock = now
        compute.seconds += seconds
        self._seconds += seconds
        self._images += len(batch[1]) * trainer.world_size
        # Several batches may be accumulated into one step.
        if not is_logged(trainer) or trainer.global_step == self._logged_step:
            return

        values = {
            "train/images": float(compute.images),
            "train/layer_executions": float(compute.layer_executions),
            "train/seconds": float(compute.seconds),
            "train/images_per_second": self._images / self._seconds,
        }
        pl_module.log_dict(values, rank_zero_only=True)
        self._logged_step = trainer.global_step
        self._images = 0
        self._seconds = 0.0


class GradientNorm(pl.Callback):
    """Logs ``train/gradient_norm``, the L2 norm of all gradients before they are clipped, whenever the loggers write.

    It is that of the one update in which they write. Other updates don't compute it, and none waits for the device.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Log it; Lightning clips the gradients after this."""
        if not is_logged(trainer, trainer.global_step + 1):
            return
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        # Each process holds a part of the gradients of sharded layers.
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        pl_module.log("train/gradient_norm", norm)


class EpochTable:
    """The lines that tell of each epoch."""

    def __init__(self) -> None:
        self._columns: list[str] = []

    def lines(self, trainer: pl.Trainer, module: pl.LightningModule) -> list[str]:
        """The line of the epoch that ends, under a heading wherever the metrics are others than before."""
        means: Any = module.step_means
        values: dict[str, Any] = {}
        if "train/loss" in means.of_epoch():
            values["train/loss"] = means.of_epoch()["train/loss"]
        values.update(trainer.progress_bar_metrics)

        # The metrics of the validation are missing until there has been one.
        lines = []
        names = list(values)
        if names != self._columns:
            self._columns = names
            lines.append("  ".join(["epoch", *names]))
        # Each value is as wide as its heading.
        numbers = [f"{values[name]:{len(name)}.4f}" for name in names]
        lines.append("  ".join([f"{trainer.current_epoch + 1:5}", *numbers]))
        return lines


class EpochLog(pl.Callback):
    """Logs a line for each epoch, where there is no progress bar: in log files, as those of an experiment's runs."""

    def __init__(self) -> None:
        self._table = EpochTable()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the line of the epoch in the first process."""
        if trainer.is_global_zero:
            for line in self._table.lines(trainer, pl_module):
                logger.info(line)


class UpdateLog(pl.Callback):
    """Logs now and then how many updates are done and how long the rest will take, where nobody sees a bar."""

    def __init__(self) -> None:
        self._lines: ProgressLines | None = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin with the first epoch. In ``on_train_start``, the run isn't planned yet."""
        budget: Any = pl_module.budget
        if self._lines is None and trainer.is_global_zero:
            # Where steps have different costs, only those at full depth can be counted ahead.
            description = "training, in full updates" if budget.ends_the_run else "training"
            done = budget.used(trainer.global_step)
            self._lines = ProgressLines(description, budget.planned_steps, "update", done)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log a line if one is due. This doesn't wait for the device."""
        budget: Any = pl_module.budget
        if self._lines is not None:
            self._lines.tell(budget.used(trainer.global_step))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let another training with the same callback begin anew."""
        self._lines = None


def can_show_a_bar() -> bool:
    """Whether stderr is a terminal or a notebook, and not a file."""
    console = Console(stderr=True)
    return console.is_terminal or console.is_jupyter


class ProgressBar(RichProgressBar):
    """A bar with the loss while an epoch lasts, and a line with all metrics after it, on stderr.

    Lightning's own bar updates the metrics after every step, and waits for the device each time. This one does so only
    when the loggers write.
    """

    def __init__(self) -> None:
        super().__init__(console_kwargs={"stderr": True})
        self._shown: dict[str, Any] = {}
        self._table = EpochTable()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin the bar, which leaves nothing behind."""
        super().on_train_start(trainer, pl_module)
        if self.progress:
            self.progress.live.transient = True

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the epochs from one, as in the lines."""
        super().on_train_epoch_start(trainer, pl_module)
        if self.progress and self.train_progress_bar_id is not None:
            description = f"epoch {trainer.current_epoch + 1}"
            if trainer.max_epochs and trainer.max_epochs > 0:
                description += f"/{trainer.max_epochs}"
            self.progress.update(self.train_progress_bar_id, description=description)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The metric beside the bar."""
        # Reading the loss waits for the device, so this is left to the steps that wait anyway, and to the last one.
        if not trainer.training or trainer.is_last_batch or is_logged(trainer):
            loss = trainer.callback_metrics.get("train/loss")
            self._shown = {}
            if loss is not None:
                self._shown["train/loss"] = float(loss)
        return self._shown

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line of the epoch above the bar."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self.progress or not trainer.is_global_zero:
            return
        for line in self._table.lines(trainer, pl_module):
            self.progress.console.print(line, markup=False, highlight=False)
