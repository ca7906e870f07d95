"""Callbacks and plugins of the trainer: checkpoints that are written whole, throughput, and the progress bar."""

import glob
import io
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.plugins.io import TorchCheckpointIO

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


class ThroughputLogger(pl.Callback):
    """Logs ``train/images_per_second``, summed over the processes, whenever the loggers write.

    Lightning's ThroughputMonitor waits for the device after every batch; this never does. So a single value can be
    too high by the work that the device has not done yet, but the mean of the values is right.
    """

    def __init__(self) -> None:
        self.images, self.seconds, self.since, self.step = 0, 0.0, 0.0, 0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again, to leave out validation and what else came before."""
        self.since = time.perf_counter()

    on_train_start = on_validation_end = on_train_epoch_start

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and log every log_every_n_steps steps."""
        now = time.perf_counter()
        self.seconds += now - self.since
        self.since = now
        self.images += len(batch[1]) * trainer.world_size
        if is_logged(trainer) and trainer.global_step != self.step:
            self.step = trainer.global_step
            pl_module.log("train/images_per_second", self.images / self.seconds, rank_zero_only=True)
            self.images, self.seconds = 0, 0.0


class ProgressBar(RichProgressBar):
    """Shows new metrics only when the loggers write them, and not the logger's version.

    Lightning's own bar shows new ones after every step, for which it waits until the device is done.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, Any] = {}

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """The metrics beside the bar."""
        if not trainer.training or trainer.is_last_batch or is_logged(trainer):
            loss = trainer.callback_metrics.get("train/loss")
            self.shown = {} if loss is None else {"train/loss": float(loss)}
            self.shown |= super().get_metrics(trainer, pl_module)
            self.shown.pop("v_num", None)
        return self.shown


def is_logged(trainer: pl.Trainer) -> bool:
    """Whether the loggers write the step that was just done; they wait for the device then anyway."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and trainer.global_step % every == 0
