"""Trains a model: ``layershuffle.train``, and what ``layershuffle train`` does once its options are read."""

import json
import logging
import os
import signal
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

from layershuffle.api.compose import Run, compose
from layershuffle.api.introduction import introduce
from layershuffle.errors import UserError, last_line
from layershuffle.files import WriterLock, is_of_full_disk
from layershuffle.library_messages import silenced
from layershuffle.training import run_loggers
from layershuffle.training.checkpointing import BestCheckpoint, LastCheckpoint, Preempted
from layershuffle.training.compute import Compute
from layershuffle.training.continuing import is_of_damaged_state
from layershuffle.training.metrics_file import METRICS_FILE
from layershuffle.training.resume import refuse_to_overwrite, remove_empty, run_folder
from layershuffle.training.trainer_options import refusal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainedRun:
    """A training that has ended.

    It is path-like, and stands for its checkpoint wherever a checkpoint is taken, as in ``evaluate(train(...))``.

    Attributes:
        best: the checkpoint of the lowest validation loss; None if the run was never validated, or in other processes
            than the first.
        last: the checkpoint after the last step; None as ``best``.
        folder: the run's folder, with its config.yaml and its metrics.
        compute: what the run cost.
        metrics: the last value of everything that was logged, such as "val/sequential".
        trainer: Lightning's trainer, whose ``lightning_module`` is the trained ``FineTuner``.
    """

    best: Path | None
    last: Path | None
    folder: Path
    compute: Compute
    metrics: dict[str, float]
    trainer: pl.Trainer

    @property
    def checkpoint(self) -> Path:
        """The best checkpoint, or the last one of a training without validation; raises UserError if there is none."""
        checkpoint = self.best or self.last
        if checkpoint is None:
            raise UserError("this training knows no checkpoint: of several processes that train, only the first does")
        return checkpoint

    def __fspath__(self) -> str:
        """The path of the checkpoint."""
        return str(self.checkpoint)


class TrainingStopped(Exception):  # noqa: N818 (it is no error)
    """A signal ended a training before its end.

    Attributes:
        message: what to tell the user, if this process tells.
        exit_code: what a process exits with after this.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code


def train(
    model: str | Path,
    data: str | Path,
    method: str | Path = "layershuffle",
    *,
    optimizer: str | Path | None = None,
    trainer: str | Path | None = None,
    recipe: str | Path | None = None,
    max_epochs: int | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    resume: bool = False,
    options: Mapping[str, Any] | None = None,
) -> TrainedRun:
    """Fine-tune a model whose layers run in another order in every step; ``layershuffle train`` does the same.

    Args:
        model: the name of a model's config, such as "vit_b16", the path of a config, or the name of a timm model.
        data: the name of a data set's config, such as "cifar100", or the path of a config.
        method: the name of a method's config, such as "layershuffle_position" or "layerdrop", or the path of a config.
        optimizer: the name of an optimizer's config, or its path; by default the paper's Adam.
        trainer: the name of a trainer's config, such as "cpu" or "gpu", or its path; by default the fastest device.
        recipe: the name of a recipe's config, such as "finetune" or "lora", or its path.
        max_epochs: the number of epochs; by default 20, or what the configs say.
        max_steps: the number of updates after which the training ends, if that is earlier.
        batch_size: images per batch and process; by default as the data set's config says.
        learning_rate: the highest learning rate; by default as the optimizer's config says.
        seed: decides everything random, together with the options.
        folder: the run's folder; by default the first of runs/version_0, runs/version_1, ... that isn't there.
        resume: continue the run that the same call began, or begin it.
        options: any other options of ``layershuffle train`` by name, such as {"model.compile": True}.

    Returns:
        The checkpoints, and what the run cost.

    Raises:
        UserError: if an option is wrong, or the training fails for a reason that a user can change.
        TrainingStopped: if a signal ended the training.
    """
    # timm takes a second to import, for which `layershuffle train --help` should not wait.
    from timm import is_model

    configs = [method, optimizer, trainer, recipe]
    words = [str(config) for config in (data, *configs) if config is not None]
    settings: dict[str, Any] = {"seed": seed, "resume": resume}
    if is_model(str(model)):
        settings["model.name"] = str(model)
    else:
        words.insert(0, str(model))

    shortcuts = {
        "trainer.max_epochs": max_epochs,
        "trainer.max_steps": max_steps,
        "data.batch_size": batch_size,
        "model.optimizer.lr": learning_rate,
    }
    given = {name: value for name, value in shortcuts.items() if value is not None}
    settings.update(given)
    # The run's folder is that of its logger, see ``run_folder``.
    if folder is not None:
        # With a slash at its end, because the default of some loggers, ".", is replaced by "runs".
        settings["trainer.logger.save_dir"] = os.path.join(Path(folder).parent, "")
        settings["trainer.logger.version"] = Path(folder).name
    settings.update(options or {})
    # Lightning and others tell of things that no user can act on; the command doesn't show them either.
    with silenced():
        return fit(compose([*words, *as_options(settings)]))


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Options by name as the words of a command line: {"model.compile": True} is ``--model.compile=true``."""
    options = []
    for name, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        options.append(f"--{name}={text}")
    return options


def fit(run: Run) -> TrainedRun:
    """Train until the end.

    Raises:
        UserError: if the training fails for a reason that a user can change.
        TrainingStopped: if a signal ended the training.
    """
    model = run.model
    run.data.prepare_for(*model.model.image_format)
    # The wrong path of a teacher fails before the data are read.
    model.load_objective()
    run_loggers.reach(run.trainer)
    folder = run_folder(run.trainer)
    with ExitStack() as locks:
        # Of several processes that train together, only the first one writes.
        if run.trainer.is_global_zero:
            locks.enter_context(WriterLock(folder))
        is_new = not folder.exists()
        try:
            introduce(run)
            return _fit_in_folder(run, folder)
        except TrainingStopped:
            raise
        except Exception as error:
            # The file of a lock would keep the folder that it is in.
            locks.close()
            if is_new and run.trainer.is_global_zero:
                remove_empty(folder, also=_worthless_after(error, run.trainer))
            raise


def _worthless_after(error: Exception, trainer: pl.Trainer) -> list[str]:
    """The files of a run that failed, beside its configuration, that nobody wants to keep."""
    has_checkpoint = any(path.is_file() for path in _checkpoints(trainer).values())
    # The run can't go on. The same command begins it again, in the same folder, once there is space.
    if is_of_full_disk(error) and not has_checkpoint:
        return [METRICS_FILE]
    return []


def _fit_in_folder(run: Run, folder: Path) -> TrainedRun:
    """Train in a folder that no other process writes."""
    trainer = run.trainer
    if not trainer.fast_dev_run:  # type: ignore[attr-defined]
        refuse_to_overwrite(trainer, run.config.checkpoint.dirpath, run.config.ckpt_path)
    run_loggers.prepare(trainer, folder, run.from_step)
    _fit(run)
    run_loggers.finish(trainer)
    _tell_what_is_kept(trainer)
    return _ended(run, folder)


def _tell_what_is_kept(trainer: pl.Trainer) -> None:
    """Say why there is no best checkpoint, or no checkpoint at all, where that is so."""
    kept = _checkpoints(trainer)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        logger.info("no checkpoint: --trainer.fast_dev_run only tries a few steps")
    elif not kept:
        logger.warning("no checkpoint: the run had no batch to train on, see --trainer.limit_train_batches")
    elif "best" not in kept:
        reason = "the run ended before its first validation"
        if not trainer.enable_validation:
            reason = "nothing was validated (--trainer.limit_val_batches 0)"
        logger.info("no best checkpoint: %s, so the last one is kept", reason)
    _tell_of_better_last(trainer)


def _tell_of_better_last(trainer: pl.Trainer) -> None:
    """Say so where the last model is clearly more accurate than the selected one.

    On few images the loss is lowest long before the accuracy is highest.
    """
    for callback in trainer.checkpoint_callbacks:
        if not isinstance(callback, BestCheckpoint):
            continue
        name = callback.better_last(trainer)
        if name:
            logger.warning(
                "the best checkpoint, by %s, has %s %.1f%%, the last one %.1f%%: evaluate the last one, or train with "
                "--checkpoint.monitor %s",
                callback.monitor,
                name,
                100 * callback.best_scores[name],
                100 * float(trainer.callback_metrics[name]),
                name,
            )


def _fit(run: Run) -> None:
    """Let the trainer work, and turn the ways in which it can stop before the end into ``fit``'s errors."""
    trainer = run.trainer
    try:
        trainer.fit(run.model, datamodule=run.data, ckpt_path=run.config.ckpt_path, weights_only=True)
        _raise_if_preempted(trainer)
    except Preempted as stop:
        raise _preempted(trainer, stop.number, stop.path) from stop
    except SIGTERMException as stop:
        raise _preempted(trainer, signal.SIGTERM, None) from stop
    except SystemExit as stop:
        # Lightning ends a training like this when Ctrl-C is pressed.
        raise TrainingStopped(_interrupted(trainer, run), 130) from stop
    except Exception as error:
        refused = refusal(error)
        if refused:
            raise refused from error
        path = run.config.ckpt_path
        if path and is_of_damaged_state(error, trainer.global_step == run.from_step):
            raise UserError(
                f"{path} is damaged, its training can't go on ({last_line(error)[:200]}): --model.pretrained {path} "
                "begins a new one from its weights"
            ) from error
        raise


def _raise_if_preempted(trainer: pl.Trainer) -> None:
    """Raise Preempted if a signal came so late that the training has ended before it was looked at."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, LastCheckpoint) and callback.received:
            raise Preempted(signal.Signals(callback.received), callback.best_model_path)


def _preempted(trainer: pl.Trainer, number: signal.Signals, path: str | None) -> TrainingStopped:
    """What a training that a signal has ended raises; ``path`` is the checkpoint to continue from."""
    # If another process failed, the launcher could kill the first one before that has ended its W&B run.
    if not trainer.is_global_zero:
        return TrainingStopped("", 0)
    saved = f"saved {os.path.relpath(path)}" if path else "nothing to save yet"
    stopped = f"{number.name}: stopped after step {trainer.global_step}, {saved}"
    return TrainingStopped(f"{stopped}; the same command with --resume continues", 128 + number)


def _interrupted(trainer: pl.Trainer, run: Run) -> str:
    """What to say after Ctrl-C."""
    last = _checkpoints(trainer).get("last")
    if not last:
        return "interrupted: no checkpoint was written yet"
    if run.config.resume:
        return "interrupted; the same command continues from the last checkpoint"
    return f"interrupted; continue with --ckpt_path {last}"


def _ended(run: Run, folder: Path) -> TrainedRun:
    """What a training has left behind."""
    checkpoints = _checkpoints(run.trainer) if run.trainer.is_global_zero else {}
    return TrainedRun(
        best=checkpoints.get("best"),
        last=checkpoints.get("last"),
        folder=folder,
        compute=run.model.compute,
        metrics={name: float(value) for name, value in run.trainer.callback_metrics.items()},
        trainer=run.trainer,
    )


def _checkpoints(trainer: pl.Trainer) -> dict[str, Path]:
    """The "last" and, once the run was validated, the "best" checkpoint, relative to the working folder."""
    checkpoints = {}
    for callback in trainer.checkpoint_callbacks:
        path = getattr(callback, "best_model_path", "")
        if path:
            checkpoints[Path(path).stem] = Path(os.path.relpath(path))
    return checkpoints
