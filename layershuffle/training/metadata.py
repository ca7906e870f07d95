"""What a training's checkpoints tell of it, in plain values: how to make the model and its data again."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning.pytorch.loggers import WandbLogger

from layershuffle.checkpoints.loading import RECORD
from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.version import __version__

if TYPE_CHECKING:
    from layershuffle.training.module import FineTuner


def write(checkpoint: dict[str, Any], module: FineTuner) -> None:
    """Add the metadata of a training to the checkpoint that Lightning is about to save."""
    checkpoint[RECORD] = {
        "version": __version__,
        "model": model_config(module),
        "method": module.method,
        "sampler": repr(module.sampler),
        **module.objective.metadata(),
        "seed": module.seed,
        "compute": asdict(module.compute),
        "precision": module.trainer.precision,
        "data": _data_of(module),
        "wandb": _wandb_run_of(module),
    }


def model_config(module: FineTuner) -> dict[str, Any]:
    """How to make the trained model again, for which layers that were never trained don't count."""
    model = module.model
    if module.base_order == model.order:
        return model.config
    return {**model.config, "order": str(module.base_order), "positions": model.positions}


def _data_of(module: FineTuner) -> dict[str, Any] | None:
    data: Any = getattr(module.trainer, "datamodule", None)
    if not isinstance(data, ImageData):
        return None
    return {**data.config(), "classes": data.class_names}


def _wandb_run_of(module: FineTuner) -> dict[str, str] | None:
    for logger in module.loggers:
        if isinstance(logger, WandbLogger):
            return {"id": str(logger.version), "project": str(logger.name)}
    return None


def compute_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the training had used up when the checkpoint was saved: the fields of ``Compute``."""
    return checkpoint.get(RECORD, {}).get("compute", {})


def check_resumed(checkpoint: dict[str, Any], module: FineTuner) -> None:
    """Raise a UserError if the checkpoint is of another model, or the objective has changed."""
    metadata = checkpoint.get(RECORD, {})
    saved = metadata.get("model", {})
    config = model_config(module)
    if saved != config:
        changed = sorted(key for key in saved | config if saved.get(key) != config.get(key))
        raise UserError(f"the checkpoint to resume from is of another model: {', '.join(changed)} differ")
    module.objective.check_resumed(metadata)
