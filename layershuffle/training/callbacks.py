"""Callbacks and plugins of the trainer: checkpoints, preemption, throughput and the progress bar."""

import glob
import io
import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import distributed

from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.files import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a new file and renames it, so that a crash or a full disk leaves the last one whole.

    Lightning copies it from the system's temporary folder, which can end half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint; raises a UserError if that fails."""
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        for unfinished in Path(path).parent.glob(f".{glob.escape(Path(path).name)}.*"):
            unfinished.unlink(missing_ok=True)  # A kill left it; only one process writes here.
        write_whole(Path(path), buffer.getbuffer())


class BestCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that recognises its folder in a resumed run, whether its path is relative or absolute."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score if the folder is the same."""
        before, now = state_dict.get("dirpath"), self.dirpath
        if before and now and Path(before).resolve() == Path(now).resolve():
            state_dict = state_dict | {"dirpath": now}
        super().load_state_dict(state_dict)

    def _should_remove_checkpoint(self, trainer: pl.Trainer, previous: str, current: str) -> bool:
        same = Path(previous).resolve() == Path(current).resolve()
        return not same and super()._should_remove_checkpoint(trainer, previous, current)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, and what schedulers send before they kill: mostly SIGTERM, and SIGUSR1 where sbatch asks SLURM for it."""


@dataclass(eq=False)
class Preempted(Exception):
    """A signal told the run to stop; ``path`` is the checkpoint to resume from, or None if nothing was saved."""

    number: signal.Signals
    path: str | None


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` after every epoch, every ``every_n_steps`` steps, and at a signal, which ends the run.

    Within an epoch it is written between two steps, once the last one has been logged, so that a resumed run logs no
    step twice and misses none; Lightning would write it earlier. All processes stop after the same step.

    Args:
        dirpath: the folder, by default that of the best checkpoint.
        every_n_steps: how often to write within an epoch; by default only at its end.
    """

    def __init__(self, dirpath: str | Path | None = None, every_n_steps: int | None = None) -> None:
        super().__init__(dirpath=dirpath, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"save_every_n_steps is a number of steps from 1 up, not {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.received = self.saved = 0  # the signal, and the step after which a checkpoint was written
        self.interrupted = 0.0  # when Ctrl-C was pressed
        self.settled = 0  # the step after which nothing is left to be written
        self._group: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, which would save in the middle of a step and stop one process alone."""
        super().on_train_start(trainer, pl_module)
        loop = trainer.fit_loop
        if loop.restarted_on_epoch_end:  # With max_steps, Lightning would run a finished epoch once more.
            loop.epoch_progress.increment_completed()
            for part in (loop, loop.epoch_loop):
                part._restarting = False
                part.reset_restart_stage()
        self.settled = self.saved = trainer.global_step
        self.received = signal.SIGTERM if trainer.received_sigterm else 0
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # Lightning restores the earlier handlers after the run.
                signal.signal(number, self._receive)
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo")
            # Lightning waits for the device in every step to agree on a signal; _agreed_signal needs no device.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint."""
        super().on_train_epoch_end(trainer, pl_module)
        self.settled = self.saved = trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write nothing between a validation within an epoch and the next step: Lightning would validate again."""
        self.settled = trainer.global_step

    def between_steps(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint if it is due, and raise Preempted if a process was told to stop.

        The LightningModule calls this when a batch has been fetched, before it is trained on.
        """
        number = self._agreed_signal()
        step = trainer.global_step
        if step != self.settled:  # A whole step has been done since.
            self.settled = step
            due = self.every_n_steps and step // self.every_n_steps > self.saved // self.every_n_steps
            if due or number:
                path = self.format_checkpoint_name({})
                trainer.save_checkpoint(path, self.save_weights_only)
                self.best_model_path, self.saved = path, step
        if number and self.saved == step:
            raise Preempted(signal.Signals(number), self.best_model_path or None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree on a signal that came after the last step, during validation. All is saved, so ``train`` heeds it."""
        super().on_train_end(trainer, pl_module)
        self.received = self._agreed_signal()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint of a run that was asked for no step, which has no epoch to write it after."""
        if not trainer.fast_dev_run and 0 in (trainer.max_epochs, trainer.max_steps) and not self.best_model_path:  # type: ignore[attr-defined]
            self.best_model_path = self.format_checkpoint_name({})
            trainer.save_checkpoint(self.best_model_path, self.save_weights_only)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            # torchrun sends a second signal at once; a person takes longer to press the keys again.
            if self.interrupted and now - self.interrupted > 0.5:
                raise KeyboardInterrupt
            if not self.interrupted and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                os.write(2, b"\ninterrupted: saving once this step is done, Ctrl-C again stops at once\n")
            self.interrupted = self.interrupted or now
        self.received = number

    def _agreed_signal(self) -> int:
        """The signal that any process has received, or 0; the processes wait for each other, not for their devices."""
        if self._group is None:
            return self.received
        received = torch.tensor(self.received)
        distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
        return int(received)


class DescribeData(pl.Callback):
    """Begins a run by printing what its data set found, where that is an ``ImageData``."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print it in the first process."""
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, ImageData) and trainer.is_global_zero:
            print(data.describe())


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
        self.images, self.seconds, self.since, self.step = 0, 0.0, 0.0, 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again, so that validation and other work before doesn't count."""
        self.since = time.perf_counter()

    on_train_start = on_validation_end = on_train_epoch_start

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and log every log_every_n_steps steps."""
        compute: Any = pl_module.compute
        now = time.perf_counter()
        self.seconds += now - self.since
        compute.seconds += now - self.since
        self.since = now
        self.images += len(batch[1]) * trainer.world_size
        if is_logged(trainer) and trainer.global_step != self.step:
            self.step = trainer.global_step
            used = {name: float(getattr(compute, name)) for name in ("images", "layer_executions", "seconds")}
            used["images_per_second"] = self.images / self.seconds
            pl_module.log_dict({f"train/{name}": value for name, value in used.items()}, rank_zero_only=True)
            self.images, self.seconds = 0, 0.0


class ProgressBar(RichProgressBar):
    """A bar with the loss while an epoch lasts, and a line with all metrics after it, in a terminal or in a log.

    Lightning's own bar updates the metrics after every step, and waits for the device each time. This one does so only
    when the loggers write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, Any] = {}
        self.columns: list[str] = []

    def _init_progress(self, trainer: pl.Trainer) -> None:
        super()._init_progress(trainer)
        if self.progress:
            self.progress.live.transient = True

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The metric beside the bar."""
        if not trainer.training or trainer.is_last_batch or is_logged(trainer):
            loss = trainer.callback_metrics.get("train/loss")
            self.shown = {} if loss is None else {"train/loss": float(loss)}
        return self.shown

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the line, under a heading wherever the metrics are others than before."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self.progress or not trainer.is_global_zero:
            return
        values = self.shown | super().get_metrics(trainer, pl_module)
        columns = ["epoch", *(name for name in values if name != "v_num")]
        if columns != self.columns:
            self.columns = columns
            self.progress.console.print("  ".join(columns), markup=False, highlight=False)
        row = [f"{trainer.current_epoch + 1:5}", *(f"{values[name]:{len(name)}.4f}" for name in columns[1:])]
        self.progress.console.print("  ".join(row), markup=False, highlight=False)

    def _get_train_description(self, current_epoch: int) -> str:
        """The epoch, counted from one as in the lines."""
        most = self.trainer.max_epochs
        return f"epoch {current_epoch + 1}" + (f"/{most}" if most and most > 0 else "")


def is_logged(trainer: pl.Trainer, steps: int | None = None) -> bool:
    """Whether the loggers, which wait for the device, write when ``steps`` steps are done; by default now."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and (trainer.global_step if steps is None else steps) % every == 0
