"""Gradients that are accumulated over several batches for one update."""

import math

import lightning.pytorch as pl


def weight_in_update(trainer: pl.Trainer, batch_idx: int) -> float:
    """What the loss of a batch is multiplied by, so that an update follows the mean over all of its batches.

    Lightning divides every loss by ``accumulate_grad_batches``, also where an epoch ends with fewer batches.

    Args:
        trainer: knows how many batches an epoch and an update have.
        batch_idx: the index of the batch in its epoch.
    """
    size: int = trainer.accumulate_grad_batches
    total = trainer.num_training_batches
    if size == 1 or math.isinf(total):  # Nobody knows where a stream of batches ends.
        return 1.0
    first_of_last_update = int(total) // size * size
    if batch_idx < first_of_last_update:
        return 1.0
    # Fewer batches are left: this replaces Lightning's divisor by their number.
    return size / (int(total) - first_of_last_update)
