"""Lets a run go on, with its metrics on disk, when W&B can't be reached or fails."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from layershuffle.training.metrics_file import MetricsFile


def prepare(trainer: pl.Trainer, from_step: int | None) -> None:
    """Begin the W&B runs of a trainer, offline if need be, and write their metrics to a metrics.csv as well.

    ``from_step`` is the step from which a resumed run goes on, or None.
    """
    for logger in list(trainer.loggers):
        if isinstance(logger, WandbLogger):
            begin(logger)
            for method in ("log_metrics", "finalize"):
                setattr(logger, method, forgiving(getattr(logger, method)))
            if not any(isinstance(other, CSVLogger) for other in trainer.loggers):
                folder, name, version = str(logger.save_dir or "."), str(logger.name), str(logger.version)
                metrics = MetricsFile(folder, name, version=version, from_step=from_step)
                trainer.loggers = [*trainer.loggers, metrics]


def finish(trainer: pl.Trainer) -> None:
    """End the W&B runs; otherwise the next run of this process would join them."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            forgiving(logger.experiment.finish)()


@rank_zero_only
def begin(logger: WandbLogger) -> None:
    """Begin the W&B run of a logger, offline if W&B can't be reached."""
    try:
        _ = logger.experiment
    except Exception as error:  # Mostly a wandb.Error, but not if wandb's own process dies.
        logger._wandb_init["mode"] = "offline"
        folder = Path(logger.experiment.dir).parent
        _warn("W&B can't be reached", error, f"later, send the run with: wandb sync {folder}")


def forgiving(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function so that its first failure prints a warning, after which it does nothing."""
    working = True

    def attempt(*args: Any, **kwargs: Any) -> None:
        nonlocal working
        try:
            if working:
                call(*args, **kwargs)
        except Exception as error:  # The client raises all kinds: its process was killed, its disk is full, ...
            working = False
            _warn("W&B takes no more", error, "the metrics go on in metrics.csv")

    return attempt


def continue_wandb(logger: Any, run: dict[str, str] | None) -> None:
    """Make the parsed config of a W&B logger, but of no other, go on with the run of this "id" and "project"."""
    if run and "WandbLogger" in str(getattr(logger, "class_path", "")) and not logger.init_args.get("id"):
        logger.init_args["id"] = run["id"]
        if logger.init_args.get("project") in (None, "lightning_logs"):  # Lightning's defaults
            logger.init_args["project"] = run["project"]
        logger["dict_kwargs"] = {**(logger.get("dict_kwargs") or {}), "resume": "allow"}


_warned: set[str] = set()


def _warn(what: str, error: Exception, advice: str) -> None:
    if what not in _warned:
        _warned.add(what)
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"warning: {what} ({reason}): {advice}", file=sys.stderr)
