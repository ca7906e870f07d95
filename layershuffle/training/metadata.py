"""What a training's checkpoints tell of it, in plain values: how to make the model and its data again."""

from dataclasses import asdict, replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger

from layershuffle.checkpoints.metadata import METADATA_KEY, CheckpointMetadata
from layershuffle.checkpoints.training_data import class_names, match_classes
from layershuffle.data import DataConfig, ImageData
from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order
from layershuffle.training.compute import Compute
from layershuffle.training.objectives import Objective
from layershuffle.version import __version__


def model_config(model: OrderedViT, base_order: Order) -> dict[str, Any]:
    """How to make the trained model again, for which layers that were never trained don't count."""
    # The positions are named, because they would follow from the shorter order otherwise.
    if base_order == model.order:
        return model.config
    return {**model.config, "order": str(base_order), "positions": model.positions}


def write(
    checkpoint: dict[str, Any],
    *,
    config: dict[str, Any],
    method: str,
    sampler: str,
    objective: Objective,
    seed: int,
    compute: Compute,
    trainer: pl.Trainer,
) -> None:
    """Add the metadata of a training to the checkpoint that Lightning is about to save.

    Args:
        checkpoint: what Lightning saves.
        config: the model's, see ``model_config``.
        method: the name of the method.
        sampler: the text of the sampler.
        objective: what was minimised.
        seed: what decided the orders.
        compute: what the training has used up.
        trainer: knows the precision, the data and the loggers.
    """
    metadata = CheckpointMetadata(
        version=__version__,
        model=config,
        method=method,
        sampler=sampler,
        **objective.metadata(),
        seed=seed,
        compute=asdict(compute),
        precision=str(trainer.precision),
        data=_data_of(trainer),
        wandb=_wandb_run_of(trainer),
    )
    checkpoint[METADATA_KEY] = metadata.to_dict()


def _data_of(trainer: pl.Trainer) -> DataConfig | None:
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageData):
        return None
    return replace(data.config(), classes=data.class_names)


def _wandb_run_of(trainer: pl.Trainer) -> dict[str, str] | None:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            return {"id": str(logger.version), "project": str(logger.name)}
    return None


def check_resumed(
    metadata: CheckpointMetadata, config: dict[str, Any], objective: Objective, trainer: pl.Trainer
) -> None:
    """Raise a UserError if the checkpoint is of a model with another ``config`` or other classes.

    The objective raises one if it has changed.
    """
    # Either may have arguments that the other lacks, because they came later or have their defaults.
    saved = metadata.model
    changed = sorted(key for key in saved | config if saved.get(key) != config.get(key))
    if changed:
        raise UserError(f"the checkpoint to resume from is of another model: {', '.join(changed)} differ")
    _check_class_names(metadata, trainer)
    objective.check_resumed(metadata)


def _check_class_names(metadata: CheckpointMetadata, trainer: pl.Trainer) -> None:
    """Raise a UserError unless the data have the checkpoint's classes, in the same sequence."""
    data: Any = getattr(trainer, "datamodule", None)
    if not isinstance(data, ImageData):
        return
    saved_names = class_names(metadata.data, metadata.model["num_classes"])
    # A run goes on with the images that it began with, so labels that have moved are a mistake.
    if match_classes(saved_names, data.class_names, "the checkpoint to resume from"):
        raise UserError(
            "the checkpoint to resume from has the classes of the data in another sequence: bring them into the same "
            "one, or begin a new run"
        )
