"""W&B as a guest: a run whose W&B is out of reach, or dies, goes on with its metrics on disk.

wandb is imported where it is used: others needn't wait for it.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from layershuffle.training.metrics_file import MetricsFile


def prepare(trainer: pl.Trainer, from_step: int | None) -> None:
    """Begin the W&B runs of a trainer, offline if need be, and write what they are told to a metrics.csv as well.

    ``from_step`` is the step that the run goes on from, if it does.
    """
    for logger in list(trainer.loggers):
        if isinstance(logger, WandbLogger):
            begin(logger)
            for method in ("log_metrics", "finalize"):
                setattr(logger, method, forgiving(getattr(logger, method)))
            if not any(isinstance(other, CSVLogger) for other in trainer.loggers):
                where = (str(logger.save_dir or "."), str(logger.name), str(logger.version))
                beside = MetricsFile(*where, from_step=from_step)
                trainer.loggers = [*trainer.loggers, beside]


def finish(trainer: pl.Trainer) -> None:
    """End the W&B runs, else the next run of this process would join them."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            forgiving(logger.experiment.finish)()


@rank_zero_only
def begin(logger: WandbLogger) -> None:
    """Begin the W&B run of a logger, offline if W&B is out of reach."""
    try:
        _ = logger.experiment
    except Exception as error:  # mostly a wandb.Error, but not if its service dies
        logger._wandb_init["mode"] = "offline"
        run = logger.experiment
        _warn(f"W&B can't be reached ({_first_line(error)}): later, send the run with: wandb sync {_folder(run)}")


def forgiving(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same, until W&B fails for the first time."""
    working = True

    def attempt(*args: Any, **kwargs: Any) -> None:
        nonlocal working
        try:
            if working:
                call(*args, **kwargs)
        except Exception as error:  # its service was killed, its disk is full, ...: whatever the client then raises
            working = False
            _warn(f"W&B takes no more ({_first_line(error)}): the metrics go on in metrics.csv")

    return attempt


def continue_wandb(logger: Any, run: dict[str, str] | None) -> None:
    """Let a W&B logger's parsed config (anything else is left alone) go on with ``run``, its "id" and "project"."""
    if run and "WandbLogger" in str(getattr(logger, "class_path", "")) and not logger.init_args.get("id"):
        logger.init_args["id"] = run["id"]
        if logger.init_args.get("project") in (None, "lightning_logs"):  # Lightning's defaults
            logger.init_args["project"] = run["project"]
        logger["dict_kwargs"] = {**(logger.get("dict_kwargs") or {}), "resume": "allow"}


_warned: set[str] = set()


def _warn(text: str) -> None:
    kind = text.partition(" (")[0]
    if kind not in _warned:
        _warned.add(kind)
        print(f"warning: {text}", file=sys.stderr)


def _folder(run: Any) -> Path:
    return Path(run.dir).parent


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
