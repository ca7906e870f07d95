"""Which options of a run that goes on from a checkpoint hold: those of the command, or else it is refused.

Lightning and torch restore some options together with the state, which would silently overrule those of the command.
"""

import logging
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging

from layershuffle.checkpoints.metadata import CheckpointMetadata
from layershuffle.data import ImageData
from layershuffle.data.module import HELD_OUT_ARGUMENTS
from layershuffle.errors import UserError, user_error
from layershuffle.hardware import is_out_of_memory
from layershuffle.plurals import counted
from layershuffle.training import metadata
from layershuffle.training.checkpointing import keep_own_files
from layershuffle.training.objectives import Objective
from layershuffle.training.resumed_optimizer import OPTIMIZER_KEY, check_optimizer

logger = logging.getLogger(__name__)

PROCESSES_KEY = "processes"
"""The key in a checkpoint of the number of processes that trained."""

OF_THE_SEQUENCE = ("batch_size", *HELD_OUT_ARGUMENTS, "balanced")
"""The options of the data that decide which images the batches of an epoch have."""


def note(checkpoint: dict[str, Any], trainer: pl.Trainer) -> None:
    """Add to a checkpoint that is about to be saved what ``check`` reads in it."""
    checkpoint[PROCESSES_KEY] = trainer.world_size
    if trainer.optimizers:
        checkpoint[OPTIMIZER_KEY] = type(trainer.optimizers[0]).__name__


def check(
    checkpoint: Mapping[str, Any], config: dict[str, Any], objective: Objective, seed: int, trainer: pl.Trainer
) -> CheckpointMetadata:
    """Refuse to go on from the checkpoint of another run; returns its metadata.

    Args:
        checkpoint: the content of the checkpoint.
        config: of the model that is trained, see ``metadata.model_config``.
        objective: what is minimised.
        seed: the seed of this run.
        trainer: knows the data, the optimizers and the processes of this run.

    Raises:
        UserError: if the model, the classes, the objective, the place in the epoch or the optimizer doesn't fit.
    """
    # The model, and what it learns.
    path = trainer.ckpt_path or "the checkpoint"
    saved = CheckpointMetadata.from_content(checkpoint, path)
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"{path} holds weights alone, and nothing of the training: continue from a last.ckpt, or begin a new run "
            f"with --model.pretrained {path}"
        )
    metadata.check_resumed(saved, config, objective, trainer)

    # The images, of which those of one epoch must stay in the same batches to the end of it.
    image_sequence: dict[str, Any] = {"seed": seed, PROCESSES_KEY: trainer.world_size}
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, ImageData):
        image_sequence.update({name: getattr(data, name) for name in OF_THE_SEQUENCE})
    check_place(checkpoint, saved, image_sequence)

    # A run may go on with other data on purpose. Other validation images of the same data are rather a mistake.
    if isinstance(data, ImageData) and saved.data and saved.data.name == data.config().name:
        warn_of_other_split(saved, {name: getattr(data, name) for name in data.deciding_arguments("val")})

    # Sharded strategies have made the optimizer, and the others make it later.
    for optimizer in trainer.optimizers:
        check_optimizer(checkpoint, optimizer)
    return saved


# --- The place in an epoch ----------------------------------------------------------------------------------


def batches_done(checkpoint: Mapping[str, Any]) -> int:
    """How many batches of its epoch a checkpoint has seen; 0 between two epochs."""
    try:
        # Between two epochs, the last one that began is also processed.
        loop = checkpoint["loops"]["fit_loop"]
        epoch = loop["epoch_progress"]["current"]
        if epoch["ready"] <= epoch["processed"]:
            return 0
        return int(loop["epoch_loop.batch_progress"]["current"]["processed"])
    except (KeyError, TypeError):  # Lightning writes no loops into checkpoints of weights alone.
        return 0


def check_place(checkpoint: Mapping[str, Any], saved: CheckpointMetadata, current: Mapping[str, Any]) -> None:
    """Raise a UserError if a run that goes on within an epoch would see some images twice and others never.

    Args:
        checkpoint: the content of the checkpoint.
        saved: its metadata.
        current: the options that now decide which images the batches have: "seed", "processes" and those of
            ``OF_THE_SEQUENCE``.
    """
    done = batches_done(checkpoint)
    if not done:
        return

    # What older checkpoints don't say is not compared.
    before = _saved_arguments(saved, OF_THE_SEQUENCE)
    if saved.seed is not None:
        before["seed"] = saved.seed
    if PROCESSES_KEY in checkpoint:
        before["processes"] = checkpoint[PROCESSES_KEY]

    for name, value in before.items():
        if name in current and current[name] != value:
            raise UserError(
                f"the checkpoint ends within an epoch, after {counted(done, 'batch')} with {name} {value}; with {name} "
                f"{current[name]} some images would come twice and others never: keep {value}, or continue from the "
                "end of an epoch"
            )


def warn_of_other_split(saved: CheckpointMetadata, current: Mapping[str, Any]) -> None:
    """Log a warning if images that validate now were trained on before the checkpoint.

    ``current`` has the options that decide which images validate, as they are now.
    """
    before = _saved_arguments(saved, current)
    changed = [name for name, value in before.items() if name in current and current[name] != value]
    if changed:
        options = " ".join(f"--data.{name} {_as_option(before[name])}" for name in changed)
        logger.warning(
            "the held-out images are others than before the checkpoint, so that some of them were trained on; the same "
            "ones are held out with %s",
            options,
        )


def _saved_arguments(saved: CheckpointMetadata, names: Iterable[str]) -> dict[str, Any]:
    """Those of these arguments of the data that a checkpoint records."""
    if saved.data is None:
        return {}
    # Earlier versions split without regard to classes, and didn't write it.
    arguments = {"stratified": False, **saved.data.args}
    return {name: arguments[name] for name in names if name in arguments}


def _as_option(value: Any) -> str:
    """A value as it is typed."""
    return "null" if value is None else str(value).lower()


# --- Callbacks ----------------------------------------------------------------------------------------------


def restore_callbacks(checkpoint: dict[str, Any], callbacks: Iterable[Any]) -> None:
    """Change a checkpoint that is about to be restored so that the options of the command's callbacks hold."""
    # The key of a state also names the metric, so that a callback that monitors another one finds none.
    callbacks = list(callbacks)
    for callback in callbacks:
        state = checkpoint.get("callbacks", {}).get(callback.state_key)
        if isinstance(callback, EarlyStopping) and state:
            state["patience"] = callback.patience
        if isinstance(callback, ModelCheckpoint) and state:
            checkpoint["callbacks"][callback.state_key] = keep_own_files(callback, state)

    # The optimizer's state belongs to the weights that were trained, not to their average.
    is_averaged = any(isinstance(callback, WeightAveraging) for callback in callbacks)
    if "current_model_state" in checkpoint and not is_averaged:
        checkpoint["state_dict"] = checkpoint["current_model_state"]
        logger.info("the weights are no longer averaged: the run goes on from those that were trained")


# --- What is damaged ----------------------------------------------------------------------------------------


def is_of_damaged_state(error: Exception, is_first_step: bool) -> bool:
    """Whether ``error`` was raised because a checkpoint holds no state that fits the run that goes on from it.

    The types and bounds of the state are known to be right. Whether anything is missing, or of another shape, only
    those know who take it over: Lightning, which restores it, and the optimizer, in the first step.

    Args:
        error: what has ended a run that goes on from a checkpoint.
        is_first_step: whether it has made no step yet.
    """
    # These have a cause of their own, which the checkpoint has nothing to do with.
    if user_error(error) or is_out_of_memory(error):
        return False

    # The types of error say nothing, but the traceback names the function that was taking over the state.
    for frame in traceback.extract_tb(error.__traceback__):
        folder = Path(frame.filename).parent
        if frame.filename.endswith("trainer/connectors/checkpoint_connector.py") and "restore" in frame.name:
            return True
        if is_first_step and frame.name == "step" and folder == Path(torch.optim.__file__).parent:
            return True
    return False
