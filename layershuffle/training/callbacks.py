"""What the trainer is given besides the model: throughput, and checkpoints that are whole or not there."""

import glob
import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from layershuffle.files import write_whole


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place and renames it, so that a full disk leaves the last one whole.

    Lightning's own writes to the system's temporary folder and copies, which can end half-way.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises UserError if it can't be written."""
        if "://" in str(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        for left in Path(path).parent.glob(f".{glob.escape(Path(path).name)}.*"):
            left.unlink(missing_ok=True)  # by a kill; only one process writes here
        write_whole(Path(path), buffer.getbuffer())


class BestCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, for which a folder that a resumed run names otherwise would be another one."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the best score if the folder is the same one, whether its path is absolute or not."""
        before, now = state_dict.get("dirpath"), self.dirpath
        if before and now and Path(before).resolve() == Path(now).resolve():
            state_dict = state_dict | {"dirpath": now}
        super().load_state_dict(state_dict)

    def _should_remove_checkpoint(self, trainer: pl.Trainer, previous: str, current: str) -> bool:
        same = Path(previous).resolve() == Path(current).resolve()
        return not same and super()._should_remove_checkpoint(trainer, previous, current)


class ThroughputLogger(pl.Callback):
    """Logs ``train/images_per_second`` of all processes whenever the loggers take metrics.

    Lightning's own ThroughputMonitor waits for the device after every batch; this never does, so a single value
    can be early by what the device still has queued, and their mean is right.
    """

    def __init__(self) -> None:
        self.images, self.seconds, self.since, self.step = 0, 0.0, 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin; a run that goes on within an epoch doesn't start it."""
        self.since = time.perf_counter()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out what came between two epochs."""
        self.since = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out a validation in the midst of an epoch."""
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log every log_every_n_steps steps."""
        now = time.perf_counter()
        self.seconds += now - self.since
        self.since = now
        self.images += len(batch[1]) * trainer.world_size
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0 and trainer.global_step != self.step:
            self.step = trainer.global_step
            pl_module.log("train/images_per_second", self.images / self.seconds, rank_zero_only=True)
            self.images, self.seconds = 0, 0.0
