"""Lets a run go on, with its metrics on disk, when W&B can't be reached or fails."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from layershuffle import private_apis
from layershuffle.errors import UserError, last_line
from layershuffle.training.metrics_file import MetricsFile

log = logging.getLogger(__name__)

NAME = re.compile(r"[^/\\#?%:\x00-\x1f\x7f]{1,128}")
"""What W&B's ids and projects consist of."""

LIGHTNINGS_PROJECT = "lightning_logs"
"""The project of a WandbLogger that names none."""


def prepare(trainer: pl.Trainer, from_step: int | None) -> None:
    """Begin the W&B runs of a trainer, offline if need be, and write their metrics to a metrics.csv as well.

    ``from_step`` is the step from which a resumed run goes on, or None.
    """
    # Metrics that W&B doesn't take would be lost without a file. A run with a file of its own needs no second one.
    loggers = list(trainer.loggers)
    has_file = any(isinstance(logger, CSVLogger) for logger in loggers)
    for logger in trainer.loggers:
        if not isinstance(logger, WandbLogger):
            continue
        begin(logger)
        logger.log_metrics = forgiving(logger.log_metrics)  # type: ignore[method-assign]
        logger.finalize = forgiving(logger.finalize)  # type: ignore[method-assign]
        if not has_file:
            folder = str(logger.save_dir or ".")
            metrics = MetricsFile(folder, str(logger.name), version=str(logger.version), from_step=from_step)
            loggers.append(metrics)
            has_file = True
    trainer.loggers = loggers


def finish(trainer: pl.Trainer) -> None:
    """End the W&B runs; otherwise the next run of this process would join them."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            forgiving(logger.experiment.finish)()


@rank_zero_only
def begin(logger: WandbLogger) -> None:
    """Begin the W&B run of a logger, offline if W&B can't be reached."""
    private_apis.leave_out_anonymous(logger)
    # Reading the property begins the run.
    try:
        _ = logger.experiment
    except Exception as error:  # Mostly a wandb.Error, but not if wandb's own process dies.
        private_apis.set_wandb_mode(logger, "offline")
        folder = Path(logger.experiment.dir).parent
        _warn_once("W&B can't be reached", error, f"later, send the run with: wandb sync {folder}")


def forgiving(function: Callable[..., Any]) -> Callable[..., None]:
    """Wrap a function so that its first failure logs a warning, after which it does nothing."""
    works = True

    def attempt(*args: Any, **kwargs: Any) -> None:
        nonlocal works
        if not works:
            return
        try:
            function(*args, **kwargs)
        except Exception as error:  # The client raises all kinds: its process was killed, its disk is full, ...
            works = False
            _warn_once("W&B takes no more", error, "the metrics go on in metrics.csv")

    return attempt


def continue_wandb(logger: Any, run: dict[str, str] | None) -> None:
    """Make the parsed config of a W&B logger, but of no other, go on with the run of this "id" and "project"."""
    is_wandb = "WandbLogger" in str(getattr(logger, "class_path", ""))
    if not run or not is_wandb or logger.init_args.get("id"):
        return
    # They come from a checkpoint, and are names of folders.
    run_id = _checked_name(run, "id")
    project = _checked_name(run, "project")
    logger.init_args["id"] = run_id
    if logger.init_args.get("project") in (None, LIGHTNINGS_PROJECT):
        logger.init_args["project"] = project
    logger["dict_kwargs"] = {**(logger.get("dict_kwargs") or {}), "resume": "allow"}


def _checked_name(run: dict[str, str], key: str) -> str:
    """The name that a checkpoint gives its W&B run; raises UserError if W&B has no such names."""
    name = run.get(key, "")
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise UserError(
            f"the checkpoint is damaged: {name[:100]!r} can't be the {key} of a W&B run; begin another one with "
            f"--trainer.logger.{key}"
        )
    return name


# Of the process: a notebook that trains several models needs no second warning of the same network.
_warned: set[str] = set()


def _warn_once(fault: str, error: Exception, advice: str) -> None:
    if fault not in _warned:
        _warned.add(fault)
        log.warning("%s (%s): %s", fault, last_line(error), advice)
