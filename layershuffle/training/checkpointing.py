"""Writes the checkpoints of a run so that whenever it is stopped, it can go on."""

import glob
import io
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor, distributed

from layershuffle import private_apis
from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.training.directions import checked_mode

SIGNALS = [signal.SIGINT, signal.SIGTERM]
if sys.platform != "win32":
    SIGNALS.append(signal.SIGUSR1)
"""Ctrl-C, and what schedulers send before they kill: mostly SIGTERM, and SIGUSR1 where sbatch asks SLURM for it."""

REPEATED_WITHIN = 0.5
"""Seconds. torchrun sends a second SIGINT at once; a person takes longer to press the keys again."""


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a new file and renames it, so that a crash or a full disk leaves the last one whole.

    Lightning copies it from the system's temporary folder, which can end half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write the checkpoint; raises a UserError if that fails."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        # A kill may have left an unfinished file. Only one process writes here.
        for unfinished in Path(path).parent.glob(f".{glob.escape(Path(path).name)}.*"):
            unfinished.unlink(missing_ok=True)
        write_whole(Path(path), buffer.getbuffer())


SCORES = ("val/arbitrary", "val/sequential")
"""The metrics that say how good a model is, whatever selects the checkpoint."""

CLEARLY_BETTER = 0.05
"""Five points. Two checkpoints that are equally good may differ by less, where the validation images are few."""


class BestCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that knows which values of its metric are the best, and its folder in a resumed run.

    Attributes:
        best_scores: what the selected checkpoint has of ``SCORES``; empty if there is none.

    Args:
        dirpath: the folder of the checkpoint.
        filename: its name, without ``.ckpt``.
        monitor: the metric that selects the checkpoint.
        mode: whether the lowest value is the best ("min") or the highest ("max"). Metrics that the package logs know it
            themselves.
        **kwargs: further arguments of ModelCheckpoint.

    Raises:
        UserError: if the mode prefers the worst values, or is needed and not given.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        mode: Literal["min", "max"] | None = None,
        **kwargs: Any,
    ) -> None:
        checked = checked_mode(monitor, mode, "--checkpoint.mode") if monitor else "min"
        super().__init__(dirpath, filename, monitor, mode=checked, **kwargs)
        self.best_scores: dict[str, float] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the checkpoint if it is the best, where Lightning does so after a validation."""
        score = self.best_model_score
        super().on_validation_end(trainer, pl_module)
        self._note_scores(trainer, score)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the checkpoint if it is the best, where Lightning does so after an epoch."""
        score = self.best_model_score
        super().on_train_epoch_end(trainer, pl_module)
        self._note_scores(trainer, score)

    def _note_scores(self, trainer: pl.Trainer, score_before: Tensor | None) -> None:
        """Note the scores of a checkpoint that has just become the best."""
        score = self.best_model_score
        if score is None or (score_before is not None and bool(score == score_before)):
            return
        metrics = trainer.callback_metrics
        self.best_scores = {name: float(metrics[name]) for name in SCORES if name in metrics}

    def state_dict(self) -> dict[str, Any]:
        """The state, with the scores of the best checkpoint, which a resumed run may never see again."""
        return {**super().state_dict(), "best_scores": self.best_scores}

    def better_last(self, trainer: pl.Trainer) -> str | None:
        """The one of ``SCORES`` in which the last model is clearly better than the best one, if it is worse in none."""
        gains = {
            name: float(trainer.callback_metrics[name]) - score
            for name, score in self.best_scores.items()
            if name in trainer.callback_metrics
        }
        if not gains or min(gains.values()) < 0:
            return None
        name = max(gains, key=gains.__getitem__)
        return name if gains[name] > CLEARLY_BETTER else None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score and the paths if the folder is the same, with a relative or an absolute path.

        Otherwise Lightning would take the folder for another one, and remove the new best checkpoint as an old one.
        """
        folder = state_dict.get("dirpath")
        if folder and self.dirpath and Path(folder).resolve() == Path(self.dirpath).resolve():
            state_dict = {**state_dict, "dirpath": self.dirpath}
            # A checkpoint may come from anyone, and those of earlier versions have no scores.
            scores = state_dict.get("best_scores")
            if isinstance(scores, dict):
                self.best_scores = {name: scores[name] for name in SCORES if isinstance(scores.get(name), float)}
        super().load_state_dict(state_dict)


def keep_own_files(callback: ModelCheckpoint, state: dict[str, Any]) -> dict[str, Any]:
    """The state of a callback of checkpoints, in which paths name nothing but checkpoints of its own.

    Lightning removes the files, and whole folders, that a restored state names, once a newer checkpoint takes their
    place. A checkpoint may come from anyone.

    Args:
        callback: what the state will be restored to; it knows its folder already.
        state: the state that a checkpoint holds, which isn't changed.

    Raises:
        UserError: if it holds scores that can't be.
    """
    best_models = state.get("best_k_models", {})
    if not isinstance(best_models, dict) or not all(isinstance(path, str) for path in best_models):
        raise UserError("the checkpoint is damaged: its best checkpoints have no paths")
    scores = [state.get(name) for name in ("best_model_score", "current_score", "kth_value")]
    scores += best_models.values()
    if not all(score is None or _is_score(score) for score in scores):
        raise UserError("the checkpoint is damaged: the score of its best checkpoint can't be")

    kept = dict(state)
    for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
        kept[name] = _own_path(callback, str(state.get(name) or ""))
    own_models = {_own_path(callback, path): score for path, score in best_models.items()}
    own_models.pop("", None)
    # Lightning takes it for granted that the worst of the best ones is among them.
    if kept["kth_best_model_path"] not in own_models:
        kept["kth_best_model_path"] = ""
        own_models = {}
    kept["best_k_models"] = own_models
    return kept


def _own_path(callback: ModelCheckpoint, path: str) -> str:
    """The file of that name in the callback's folder, wherever ``path`` says that it is.

    Returns "" if there is no such file, or if the callback would not call a checkpoint so.
    """
    # What stands before the first value of a template, such as "best" in best-{epoch}.
    prefix = (callback.filename or "").partition("{")[0]
    file = Path(str(callback.dirpath), os.path.basename(path))
    if file.name.startswith(prefix) and file.suffix == callback.FILE_EXTENSION and file.is_file():
        return str(file)
    return ""


def _is_score(value: Any) -> bool:
    """Whether a value is a tensor of one number that isn't NaN. Infinity stands for a score that isn't there yet."""
    return isinstance(value, Tensor) and value.numel() == 1 and not bool(value.isnan().any())


@dataclass(eq=False)
class Preempted(Exception):  # noqa: N818 (it is no error)
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

    Attributes:
        received: the signal that this process has received, or 0.
        saved: the step after which the last checkpoint was written.
    """

    def __init__(self, dirpath: str | Path | None = None, every_n_steps: int | None = None) -> None:
        super().__init__(dirpath=dirpath, filename="last", enable_version_counter=False, save_on_train_epoch_end=True)
        if every_n_steps is not None and every_n_steps < 1:
            raise UserError(f"save_every_n_steps is a number of steps from 1 up, not {every_n_steps}")
        self.every_n_steps = every_n_steps
        self.received = 0
        self.saved = 0
        self._interrupted_at: float | None = None
        # The step after which nothing is left to be written.
        self._settled = 0
        self._group: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals over from Lightning, which would save in the middle of a step and stop one process alone."""
        super().on_train_start(trainer, pl_module)
        private_apis.begin_next_epoch(trainer)
        self.saved = trainer.global_step
        self._settled = trainer.global_step

        # Lightning has listened for SIGTERM until now. Python allows handlers in the main thread alone.
        self.received = signal.SIGTERM if trainer.received_sigterm else 0
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:  # Lightning restores the earlier handlers after the run.
                signal.signal(number, self._receive)
        # The processes agree on signals through their hosts, so that no device is waited for.
        if trainer.world_size > 1:
            self._group = distributed.new_group(backend="gloo")
            private_apis.skip_lightnings_agreement_on_signals(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint."""
        super().on_train_epoch_end(trainer, pl_module)
        self.saved = trainer.global_step
        self._settled = trainer.global_step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write nothing between a validation within an epoch and the next step: Lightning would validate again."""
        self._settled = trainer.global_step

    def between_steps(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint if it is due, and raise Preempted if a process was told to stop.

        The LightningModule calls this when a batch has been fetched, before it is trained on.
        """
        number = self._agreed_signal()
        step = trainer.global_step
        # Batches that are accumulated into one step come here several times. Only after the last one the step is whole.
        whole_step_done = step != self._settled
        self._settled = step
        if whole_step_done and (number or self._is_due(step)):
            self._save(trainer)
            self.saved = step
        if number and self.saved == step:
            raise Preempted(signal.Signals(number), self.best_model_path or None)

    def _is_due(self, step: int) -> bool:
        """Whether a multiple of ``every_n_steps`` lies between the last checkpoint and now."""
        if self.every_n_steps is None:
            return False
        return step // self.every_n_steps > self.saved // self.every_n_steps

    def _save(self, trainer: pl.Trainer) -> None:
        """Write the checkpoint; all processes must call this."""
        path = self.format_checkpoint_name({})
        trainer.save_checkpoint(path, self.save_weights_only)
        self.best_model_path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Agree on a signal that came after the last step, during validation. All is saved, so ``train`` heeds it."""
        super().on_train_end(trainer, pl_module)
        self.received = self._agreed_signal()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the checkpoint of a run of 0 steps, which has no epoch to write it after."""
        has_no_step = 0 in (trainer.max_epochs, trainer.max_steps)
        if has_no_step and not self.best_model_path and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save(trainer)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; a second Ctrl-C ends the process at once."""
        self.received = number
        if number != signal.SIGINT:
            return
        now = time.monotonic()
        if self._interrupted_at is None:
            self._interrupted_at = now
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                # Not logged: a handler may run while the logger holds its lock.
                os.write(2, b"\ninterrupted: saving once this step is done, Ctrl-C again stops at once\n")
        elif now - self._interrupted_at > REPEATED_WITHIN:
            raise KeyboardInterrupt

    def _agreed_signal(self) -> int:
        """The signal that any process has received, or 0; the processes wait for each other, not for their devices."""
        if self._group is None:
            return self.received
        received = torch.tensor(self.received)
        distributed.all_reduce(received, distributed.ReduceOp.MAX, group=self._group)
        return int(received)
