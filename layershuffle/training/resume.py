"""The folders of runs: ``--resume auto`` finds the run that the same command began, and no run overwrites another."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace

from layershuffle.errors import UserError
from layershuffle.training import wandb_runs

IGNORED = ("config", "ckpt_path", "resume")
"""Options that may differ between two commands that train the same run."""


def find_earlier_run(config: Namespace, asked: str, defaults: str) -> tuple[Path, Path | None] | None:
    """Find the run whose saved config has the same options: the newest that has a checkpoint, or else the newest.

    Args:
        config: the parsed options.
        asked: the same options as YAML, as they are saved in a run's folder.
        defaults: the options' defaults as YAML. An option that is newer than the saved config must have its default.

    Returns:
        The run's folder and its last checkpoint, if it has written one; None if there is no such run.
    """
    options = _options(asked)
    loggers = configured_loggers(config)
    root = vars(loggers[0].init_args).get("save_dir") if loggers else None
    root = Path(root or config.trainer.default_root_dir or os.getcwd())
    # A run's folder is root/version or root/name/version, or root/checkpoints if nothing is logged.
    paths = [*root.glob("*/config.yaml"), *root.glob("*/*/config.yaml")]
    found = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        if _same(_options(path.read_text(errors="replace")), options, yaml.safe_load(defaults)):
            last = last_checkpoint(path.parent, config.trainer.logger is not False, config.checkpoint.dirpath)
            found.append((path.parent, last if last.is_file() else None))
    return max(found, key=lambda run: run[1] is not None, default=None)


def continue_run(config: Namespace, folder: Path, last: Path | None, step: int) -> None:
    """Change ``config`` so that it goes on after ``step``, in the folder and the metrics file of an earlier run."""
    config.ckpt_path = str(last) if last else None
    loggers = configured_loggers(config)
    for logger in loggers:
        if "CSVLogger" in str(logger.class_path):  # It would delete the rows that are there.
            logger.class_path = "layershuffle.training.metrics_file.MetricsFile"
        if "MetricsFile" in str(logger.class_path):
            logger.init_args["from_step"] = step
        if "Wandb" in str(loggers[0].class_path):
            wandb_runs.continue_wandb(logger, {"id": folder.name, "project": folder.parent.name})
        elif "version" in logger.init_args:
            logger.init_args["version"] = folder.name


def place_loggers(config: Namespace) -> None:
    """Make the loggers without a folder of their own write to ``--trainer.default_root_dir``, or else to ``runs``."""
    for logger in configured_loggers(config):
        place(logger, config.trainer.default_root_dir)


def place(logger: Namespace | None, folder: str | None = None) -> None:
    """Make a logger without a folder of its own, as its parsed config says, write to ``folder`` or else to ``runs``."""
    if logger and logger.init_args.get("save_dir", "") in (None, ".", "runs"):  # the loggers' defaults
        logger.init_args["save_dir"] = folder or "runs"


def run_folder(trainer: pl.Trainer) -> Path:
    """The folder of a trainer's run, which holds its config.yaml."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir) / "checkpoints"
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def remove_empty(folder: Path) -> None:
    """Remove the folder of a run that failed before it had anything to keep but its configuration."""
    if not any(path.is_file() and path.name != "config.yaml" for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # It holds other runs.
            folder.parent.rmdir()


def last_checkpoint(folder: Path, logged: bool, dirpath: str | None) -> Path:
    """The path of the checkpoint that the run in ``folder`` resumes from; ``dirpath`` is the user's, if any."""
    return Path(dirpath or (folder / "checkpoints" if logged else folder)) / "last.ckpt"


def refuse_to_overwrite(trainer: pl.Trainer, dirpath: str | None) -> None:
    """Raise a UserError if a new run would write its checkpoints over those of another one."""
    # The loggers of the other processes don't know the folder yet.
    last = last_checkpoint(run_folder(trainer), bool(trainer.loggers), dirpath) if trainer.is_global_zero else None
    if last and last.is_file():
        raise UserError(
            f"{last} is of another run, which would be lost: give this one another folder, or --ckpt_path {last} to "
            "go on from it"
        )


def configured_loggers(config: Namespace) -> list[Namespace]:
    """The configs of the trainer's loggers."""
    loggers = config.trainer.logger
    return [logger for logger in (loggers if isinstance(loggers, list) else [loggers]) if hasattr(logger, "class_path")]


def _same(saved: Any, asked: Any, defaults: Any) -> bool:
    """Whether two parts of configs are the same, but for options that one doesn't have and the other leaves out.

    What is newer than the saved config must be off or have its default. Those of a class that was named are not known.
    """
    if not isinstance(saved, dict) or not isinstance(asked, dict):
        return bool(saved == asked)
    defaults = defaults if isinstance(defaults, dict) else {}
    newer = {name: value for name, value in asked.items() if name not in saved}
    return (
        all(value is None or value is False or value == defaults.get(name) for name, value in newer.items())
        and all(value is None for name, value in saved.items() if name not in asked)
        and all(_same(saved[name], asked[name], defaults.get(name)) for name in saved.keys() & asked.keys())
    )


def _options(text: str) -> Any:
    """The options in a saved config that tell runs apart; None if it is no such config."""
    try:
        content = yaml.safe_load(text)
        return {name: value for name, value in content.items() if name not in IGNORED}
    except Exception:  # The file is not one of ours, and yaml raises all kinds of errors.
        return None
