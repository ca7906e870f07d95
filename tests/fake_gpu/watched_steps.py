"""The callback that watches a training."""

import lightning.pytorch as pl
from fake_gpu.runs import BATCHES, FIRST, LAST
from fake_gpu.watch import Watch


class WatchSteps(pl.Callback):
    """Watches training steps, validation batches, and what comes between them, such as the next batch."""

    watch: Watch

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        # Several batches may be accumulated into a step.
        if trainer.global_step == FIRST:
            self.watch.begin()
        if trainer.global_step == LAST:
            self.watch.end()

    def on_validation_batch_end(
        self, trainer: pl.Trainer, module: object, outputs: object, batch: object, index: int
    ) -> None:
        if trainer.sanity_checking:
            return
        if index == 0:
            self.watch.begin()
        if index == BATCHES - 1:
            self.watch.end()

    def on_validation_epoch_end(self, trainer: pl.Trainer, module: object) -> None:
        if not trainer.sanity_checking:
            assert sum(trainer.num_val_batches) == BATCHES, trainer.num_val_batches
