"""Callbacks of the trainer."""

import time
from typing import Any

import lightning.pytorch as pl


class ThroughputLogger(pl.Callback):
    """Logs ``train/images_per_second`` of all processes whenever the loggers take metrics.

    Lightning's own ThroughputMonitor waits for the device after every batch; this never does, so a single value
    can be early by what the device still has queued, and their mean is right.
    """

    def __init__(self) -> None:
        self.images = 0
        self.since = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave out what came between two epochs."""
        self.images, self.since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count, and log every log_every_n_steps."""
        self.images += len(batch[1]) * trainer.world_size
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if (trainer.global_step + 1) % every == 0:
            now = time.perf_counter()
            pl_module.log("train/images_per_second", self.images / (now - self.since), rank_zero_only=True)
            self.images, self.since = 0, now
