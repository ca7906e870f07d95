"""Which options of a run that goes on from a checkpoint hold: those of the command, or else it is refused.

Lightning and torch restore some options together with the state, which would silently overrule those of the command.
"""

import logging
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, WeightAveraging
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from layershuffle.checkpoints.metadata import CheckpointMetadata
from layershuffle.checkpoints.plain_values import is_whole
from layershuffle.data import ImageData
from layershuffle.data.module import HELD_OUT_ARGUMENTS
from layershuffle.errors import UserError, shown, user_error
from layershuffle.hardware import is_out_of_memory
from layershuffle.plurals import counted
from layershuffle.training import metadata
from layershuffle.training.checkpointing import keep_own_files
from layershuffle.training.objectives import Objective

logger = logging.getLogger(__name__)

PROCESSES_KEY = "processes"
"""The key in a checkpoint of the number of processes that trained."""

OPTIMIZER_KEY = "optimizer"
"""The key in a checkpoint of the name of the optimizer's class."""

OF_THE_SEQUENCE = ("batch_size", *HELD_OUT_ARGUMENTS, "balanced")
"""The options of the data that decide which images the batches of an epoch have."""

OF_THE_STATE = ("amsgrad", "centered")
"""The options of torch's optimizers that decide what their state consists of."""


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
    path = trainer.ckpt_path or "the checkpoint"
    saved = CheckpointMetadata.from_content(checkpoint, path)
    if "optimizer_states" not in checkpoint:
        raise UserError(
            f"{path} holds weights alone, and nothing of the training: continue from a last.ckpt, or begin a new run "
            f"with --model.pretrained {path}"
        )
    metadata.check_resumed(saved, config, objective, trainer)

    image_sequence: dict[str, Any] = {"seed": seed, PROCESSES_KEY: trainer.world_size}
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, ImageData):
        image_sequence.update({name: getattr(data, name) for name in OF_THE_SEQUENCE})
    check_place(checkpoint, saved, image_sequence)
    if isinstance(data, ImageData) and saved.data and saved.data["class"] == data.config().name:
        warn_of_other_split(saved, {name: getattr(data, name) for name in data.deciding_arguments("val")})

    # Sharded strategies have made the optimizer, and the others make it later.
    for optimizer in trainer.optimizers:
        check_optimizer(checkpoint, optimizer)
    return saved


# --- The place in an epoch ----------------------------------------------------------------------------------


def batches_done(checkpoint: Mapping[str, Any]) -> int:
    """How many batches of its epoch a checkpoint has seen; 0 between two epochs."""
    try:
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
    before = _saved_arguments(saved, OF_THE_SEQUENCE)
    if saved.seed is not None:
        before["seed"] = saved.seed
    if PROCESSES_KEY in checkpoint:  # Earlier versions didn't write it.
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
    arguments = {"stratified": False, **saved.data.get("args", {})}
    return {name: arguments[name] for name in names if name in arguments}


def _as_option(value: Any) -> str:
    """A value as it is typed."""
    return "null" if value is None else str(value).lower()


# --- The optimizer ------------------------------------------------------------------------------------------


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of each group of parameters, before a schedule changes the learning rate."""
    groups = []
    for group in optimizer.param_groups:
        options = {name: value for name, value in group.items() if name not in ("params", "param_names")}
        groups.append(options)
    return groups


def check_optimizer(checkpoint: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Raise a UserError if the state of the optimizer in a checkpoint isn't one of this optimizer."""
    states = checkpoint.get("optimizer_states")
    if not states:  # The run is new, or its checkpoint is of a run of 0 steps.
        return
    complaint = "the checkpoint to continue from has"
    advice = "use the same, or begin a new run with --model.pretrained"
    name = type(optimizer).__name__
    saved_name = checkpoint.get(OPTIMIZER_KEY, name)  # Earlier versions didn't write it.
    if saved_name != name:
        raise UserError(f"{complaint} the state of {saved_name}, which {name} can't go on with: {advice}")

    saved_groups = states[0]["param_groups"]
    sizes = [len(group["params"]) for group in saved_groups]
    if sizes != [len(group["params"]) for group in optimizer.param_groups]:
        raise UserError(f"{complaint} other groups of trained parameters (--model.trainable): {advice}")
    for saved, group in zip(saved_groups, optimizer.param_groups):
        unknown = saved.keys() - group.keys() - {"initial_lr", "param_names"}
        changed = [option for option in OF_THE_STATE if option in saved and saved[option] != group.get(option)]
        if unknown or changed:
            options = ", ".join([*sorted(unknown), *changed])
            raise UserError(f"{complaint} the state of an optimizer with another {options} than {name}: {advice}")


def optimizer_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What ``check_optimizer`` reads in a checkpoint, for an optimizer that is made later."""
    return {key: checkpoint[key] for key in (OPTIMIZER_KEY, "optimizer_states") if key in checkpoint}


def check_state(checkpoint: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Raise a UserError if the state in a checkpoint isn't one of the parameters of this optimizer.

    torch doesn't compare their shapes, and the fused kernels write as many values as a parameter has, wherever the
    state ends. Others raise an error of their own.

    Args:
        checkpoint: the content of the checkpoint, for which ``check_optimizer`` raised nothing.
        optimizer: an optimizer of whole parameters, with no state yet.
    """
    states = checkpoint.get("optimizer_states")
    if not states or "fused" not in optimizer.defaults:
        return
    for saved, group in zip(states[0]["param_groups"], optimizer.param_groups):
        for key, parameter in zip(saved["params"], group["params"]):
            state = states[0]["state"].get(key, {})
            for name, value in state.items():
                if not _can_be_of(name, value, parameter):
                    raise UserError(
                        "the checkpoint to continue from is damaged: the state of its optimizer doesn't fit the "
                        f"parameters ({shown(name)})"
                    )


def _can_be_of(name: str, value: Any, parameter: Tensor) -> bool:
    """Whether a value can be in the state of a parameter."""
    if value is None or name == "step":
        # Earlier versions of torch counted steps in Python's numbers.
        is_float = isinstance(value, Tensor) and value.numel() == 1 and value.dtype == torch.float32
        return value is None or is_float or is_whole(value)
    if not isinstance(value, Tensor) or value.shape != parameter.shape or not value.is_floating_point():
        return False
    # As torch lays out a parameter of this shape, without gaps.
    return value.is_contiguous() or value.stride() == parameter.stride()


def restore_options(optimizer: Optimizer, scheduler: LambdaLR, options: Sequence[Mapping[str, Any]]) -> None:
    """Give an optimizer that has taken over a checkpoint's state the options of the command again.

    The schedule sets the rates of the coming step only when it is told to, see ``set_rates_again``.
    """
    changes: dict[str, str] = {}
    for group, of_group in zip(optimizer.param_groups, options):
        for name, value in of_group.items():
            # The schedule changes "lr"; torch keeps the highest learning rate as "initial_lr".
            key = "initial_lr" if name == "lr" else name
            if _plain(group.get(key)) != _plain(value):
                changes.setdefault(name, f"{name} {value} in place of {group.get(key)}")
                group[key] = value
    scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
    if changes:
        logger.info("optimizer: goes on with %s", ", ".join(changes.values()))


def _plain(value: Any) -> Any:
    """Configs hold lists where a default is a tuple."""
    return tuple(value) if isinstance(value, list) else value


# --- Callbacks ----------------------------------------------------------------------------------------------


def restore_callbacks(checkpoint: dict[str, Any], callbacks: Iterable[Any]) -> None:
    """Change a checkpoint that is about to be restored so that the options of the command's callbacks hold."""
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
    if user_error(error) or is_out_of_memory(error):
        return False
    for frame in traceback.extract_tb(error.__traceback__):
        folder = Path(frame.filename).parent
        if frame.filename.endswith("trainer/connectors/checkpoint_connector.py") and "restore" in frame.name:
            return True
        if is_first_step and frame.name == "step" and folder == Path(torch.optim.__file__).parent:
            return True
    return False
