"""The file of a training step whose loss or weights were not finite: its batch, its orders and its place in the run."""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from layershuffle import typed_json
from layershuffle.data.rereading import read_again
from layershuffle.errors import UserError, last_line
from layershuffle.files import write_whole
from layershuffle.training.resume import CONFIG_FILE, run_folder
from layershuffle.version import __version__

logger = logging.getLogger(__name__)

METADATA_KEY = "non_finite_step"
"""The key in the file of what is known of the step, as JSON."""

MOST_BYTES = 64 << 20
"""As many images are saved as fit in so many bytes."""


class BatchPlace(NamedTuple):
    """Where a batch stands in a training, which decides its images, its orders and its dropout; all count from 0.

    Attributes:
        step: the optimizer step.
        epoch: the epoch.
        batch: the number of the batch in its epoch and process.
    """

    step: int
    epoch: int
    batch: int


@dataclass(frozen=True)
class NonFiniteStep:
    """A step whose loss or weights were not finite.

    Attributes:
        version: of the package.
        step: the optimizer step, from 0.
        epoch: the epoch, from 0.
        batch: the number of the batch in its epoch and process, from 0.
        rank: the process whose loss was not finite.
        orders: the orders of the batch's parts, as texts.
        precision: of the training, such as "bf16-mixed".
        checkpoint: the last good checkpoint, relative to the file's folder; None if the run had none.
        indices: the number of each image of the batch in the whole training set.
        paths: the file of each image, if the images are files.
    """

    version: str
    step: int
    epoch: int
    batch: int
    rank: int
    orders: list[str]
    precision: str
    checkpoint: str | None
    indices: list[int]
    paths: list[str] | None = None


def save(trainer: pl.Trainer, place: BatchPlace, rank: int, orders: list[str], checkpoint: str | None) -> Path | None:
    """Read a batch again and save it in the run's folder; returns the path.

    Returns None in other processes than the first, and for a run without a config.yaml, which nobody can replay. If the
    file can't be written, a warning says so: whoever calls this has something worse to report.

    Args:
        trainer: of the run.
        place: where the batch stands.
        rank: the process that has trained on it.
        orders: the orders of its parts, as texts.
        checkpoint: the last good one.
    """
    if not trainer.is_global_zero:
        return None
    folder = run_folder(trainer)
    if not (folder / CONFIG_FILE).is_file():
        return None
    path = folder / f"non_finite_step_{place.step}.safetensors"
    try:
        batch = read_again(trainer.train_dataloader, place.epoch, place.batch, rank)
        if batch is None:
            return None
        step = NonFiniteStep(
            version=__version__,
            step=place.step,
            epoch=place.epoch,
            batch=place.batch,
            rank=rank,
            orders=orders,
            precision=str(trainer.precision),
            checkpoint=os.path.relpath(checkpoint, folder) if checkpoint else None,
            indices=batch.indices,
            paths=batch.paths,
        )
        # The indices and labels of all images are saved, but the pixels only of as many as fit.
        most_images = max(1, MOST_BYTES // batch.images[0].nbytes)
        tensors = {"images": batch.images[:most_images].cpu().contiguous(), "labels": batch.labels.cpu()}
        metadata = {METADATA_KEY: json.dumps(typed_json.write(step))}
        write_whole(path, to_safetensors(tensors, metadata))
    except Exception as error:  # A data set may be one of the user's own, and its files may be gone by now.
        logger.warning("the batch could not be saved: %s", last_line(error))
        return None
    return path


def load(path: str | Path) -> tuple[NonFiniteStep, Tensor]:
    """What is known of a step, and its images, or the first of many: uint8 [images, channels, height, width].

    Raises:
        UserError: if it is no such file, or is damaged.
    """
    if not os.path.isfile(path):
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if METADATA_KEY not in metadata:
                raise UserError(f"{path} is not a file that layershuffle train has saved of a step that went wrong")
            step = typed_json.read(NonFiniteStep, json.loads(metadata[METADATA_KEY]), f"{path}: {METADATA_KEY}")
            return step, file.get_tensor("images")
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is not a safetensors file, or is damaged: {last_line(error)[:200]}") from error
