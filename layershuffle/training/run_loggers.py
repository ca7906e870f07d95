"""Logs a run to W&B, MLflow or TensorBoard, and lets it go on, with its metrics on disk, if one of them fails."""

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from layershuffle import private_apis
from layershuffle.errors import UserError, last_line
from layershuffle.training.metrics_file import MetricsFile

log = logging.getLogger(__name__)

NAME = re.compile(r"[^/\\#?%:\x00-\x1f\x7f]{1,128}")
"""What W&B's ids and projects consist of."""

EXTRAS = {"TensorBoardLogger": "tensorboard", "MLFlowLogger": "mlflow"}
"""The extras that Lightning's loggers need."""

LIGHTNINGS_PROJECT = "lightning_logs"
"""The project of a WandbLogger that names none."""


def refusal(error: ValueError) -> UserError | None:
    """Why a logger could not be made, such as a package that is missing, if ``error`` tells that; otherwise None."""
    # jsonargparse names the types that the option takes, and keeps what the logger has raised as the first cause.
    if "lightning.pytorch.loggers.logger.Logger" not in str(error):
        return None
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ModuleNotFoundError):
        for name, extra in EXTRAS.items():
            if name in str(error):
                return UserError(f"{name} needs a package that is missing: pip install 'layershuffle[{extra}]'")
    reason = str(cause).strip().splitlines()[0]
    return UserError(f"--trainer.logger: {reason[:300].rstrip('.')}: see --help trainer.logger")


def reach(trainer: pl.Trainer) -> None:
    """Begin the MLflow runs of a trainer, whose ids name its folder; raises UserError if MLflow can't be reached."""
    for logger in trainer.loggers:
        if not isinstance(logger, MLFlowLogger):
            continue
        # Reading the property begins the run.
        try:
            _ = logger.experiment
        except Exception as error:  # MLflow raises its own kinds, and those of what it stores runs in.
            raise UserError(
                f"MLflow can't begin a run ({last_line(error)[:200]}): check --trainer.logger.tracking_uri, or leave "
                "it out to log to a file"
            ) from error


def prepare(trainer: pl.Trainer, folder: Path, from_step: int | None) -> None:
    """Begin the W&B runs of a trainer, offline if need be, and write a metrics.csv beside what other loggers keep.

    Args:
        trainer: has the loggers.
        folder: the run's folder.
        from_step: the step from which a resumed run goes on, or None.
    """
    # A trial writes nothing: Lightning has put loggers in place that do nothing.
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return

    loggers = list(trainer.loggers)
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            continue
        if isinstance(logger, WandbLogger):
            begin(logger)
        logger.log_metrics = forgiving(logger.log_metrics, logger)  # type: ignore[method-assign]
        logger.finalize = forgiving(logger.finalize, logger)  # type: ignore[method-assign]

    # Metrics that another logger doesn't take would be lost without a file. One file is enough.
    has_file = any(isinstance(logger, CSVLogger) for logger in loggers)
    if loggers and not has_file:
        loggers.append(MetricsFile(str(folder.parent), version=folder.name, from_step=from_step))
    trainer.loggers = loggers


def log_options(trainer: pl.Trainer, options: dict[str, Any]) -> None:
    """Send the options of a run to its loggers, but not to a CSV file, beside which they lie in config.yaml."""
    for logger in trainer.loggers:
        if not isinstance(logger, CSVLogger):
            forgiving(_log_options, logger)(logger, options)


def _log_options(logger: Logger, options: dict[str, Any]) -> None:
    # MLflow refuses to change an option of a run that goes on, such as the checkpoint that it continues from.
    if isinstance(logger, MLFlowLogger) and logger.experiment.get_run(logger.run_id).data.params:
        return
    logger.log_hyperparams(options)


def finish(trainer: pl.Trainer) -> None:
    """End the W&B runs; otherwise the next run of this process would join them."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            forgiving(logger.experiment.finish, logger)()


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


def forgiving(function: Callable[..., Any], logger: Logger) -> Callable[..., None]:
    """Wrap a function of a logger so that its first failure logs a warning, after which it does nothing."""
    works = True
    name = "W&B" if isinstance(logger, WandbLogger) else type(logger).__name__

    def attempt(*args: Any, **kwargs: Any) -> None:
        nonlocal works
        if not works:
            return
        try:
            function(*args, **kwargs)
        except Exception as error:  # The clients raise all kinds: a process was killed, a disk is full, ...
            works = False
            _warn_once(f"{name} takes no more", error, "the metrics go on in metrics.csv")

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
