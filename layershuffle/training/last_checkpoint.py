"""The checkpoint to resume from: written every epoch, every so many steps, and when the run is told to stop."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import distributed

from layershuffle.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""What schedulers send before they kill: mostly SIGTERM, and SLURM sends SIGUSR1 where sbatch asks for it."""


class Preempted(Exception):
    """The run was told to stop, and has saved what it needs to go on.

    Attributes:
        signal: the signal that told it.
        path: the checkpoint to resume from, or None if there was nothing to save.
    """

    def __init__(self, number: int, path: str | None, step: int) -> None:
        self.signal, self.path = signal.Signals(number), path
        super().__init__(f"{self.signal.name} after step {step}")


class LastCheckpoint(ModelCheckpoint):
    """Writes ``last.ckpt`` after every epoch, every ``every_n_steps`` steps, and at a signal, which ends the run.

    Within an epoch it is written between two steps, when the last one has been logged, so that a resumed run repeats
    and loses nothing; Lightning writes it before. All processes stop after the same step.

    Args:
        dirpath: the folder, by default that of the best checkpoint.
        every_n_steps: how often to write within an epoch; None for at its end only.
    """

    def __init__(self, dirpath: str | Path | None = None, every_n_steps: int | None = None) -> None:
        super().__init__(dirpath=dirpath, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"save_every_n_steps is a number of steps from 1 up, not {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.received = 0
        self.settled = self.saved = 0
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
        if step != self.settled:  # a whole step has been done since
            self.settled = step
            due = self.every_n_steps and step // self.every_n_steps > self.saved // self.every_n_steps
            if due or number:
                path = self.format_checkpoint_name({})
                trainer.save_checkpoint(path, self.save_weights_only)
                self.best_model_path, self.saved = path, step
        if number and self.saved == step:
            raise Preempted(number, self.best_model_path or None, step)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def _agreed_signal(self) -> int:
        """The signal that any process has received, or 0; the processes wait for each other, not for their devices."""
        if self._group is None:
            return self.received
        received = torch.tensor(self.received)
        distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
        return int(received)
