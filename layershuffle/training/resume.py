"""The folders of runs: resuming finds the run that the same command began, and no run overwrites another."""

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import Namespace

from layershuffle.errors import UserError
from layershuffle.training import run_loggers

IGNORED = ("config", "ckpt_path", "resume")
"""Options that may differ between two commands that train the same run."""

CONFIG_FILE = "config.yaml"
"""The file in a run's folder that holds its options."""


@dataclass(frozen=True)
class EarlierRun:
    """A run that was begun before.

    Attributes:
        folder: the run's folder.
        checkpoint: its last checkpoint, or None if it has written none.
    """

    folder: Path
    checkpoint: Path | None


def find_earlier_run(config: Namespace, options: str, defaults: str) -> EarlierRun | None:
    """Find the run whose saved config has the same options: the newest that has a checkpoint, or else the newest.

    Args:
        config: the parsed options.
        options: the same options as YAML, as they are saved in a run's folder.
        defaults: the options' defaults as YAML. An option that is newer than the saved config must have its default.

    Returns:
        The run, or None if there is no such run.
    """
    comparable = _comparable_options(options)
    default_values = yaml.safe_load(defaults)
    newest: EarlierRun | None = None
    for path in _saved_configs(config):
        if not _is_same(_comparable_options(path.read_text(errors="replace")), comparable, default_values):
            continue
        last = last_checkpoint(path.parent, config.trainer.logger is not False, config.checkpoint.dirpath)
        if last.is_file():
            return EarlierRun(path.parent, last)
        # It was stopped before its first checkpoint, and can still begin again in the same folder.
        if newest is None:
            newest = EarlierRun(path.parent, None)
    return newest


def _saved_configs(config: Namespace) -> Iterator[Path]:
    """The config files of all runs in the folder that ``config`` would write to, newest first."""
    loggers = configured_loggers(config)
    save_dir = loggers[0].init_args.get("save_dir") if loggers else None
    root = Path(save_dir or config.trainer.default_root_dir or os.getcwd())
    # A run's folder is root/version or root/name/version, or root/checkpoints if nothing is logged.
    paths = [*root.glob(f"*/{CONFIG_FILE}"), *root.glob(f"*/*/{CONFIG_FILE}")]
    yield from sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _comparable_options(text: str) -> Any:
    """The options in a saved config that tell runs apart; None if it is no such config."""
    # A file that is not one of ours may hold anything, and yaml raises all kinds of errors.
    try:
        options = yaml.safe_load(text)
        return {name: value for name, value in options.items() if name not in IGNORED}
    except Exception:
        return None


def _is_same(saved: Any, current: Any, defaults: Any) -> bool:
    """Whether two parts of configs are the same, apart from options that only one version of the package has.

    What is newer than the saved config must be off or have its default. The defaults of a class's arguments are not
    known.
    """
    if not isinstance(saved, dict) or not isinstance(current, dict):
        return bool(saved == current)
    if not isinstance(defaults, dict):
        defaults = {}
    for name, value in current.items():
        default = defaults.get(name)
        if name in saved:
            if not _is_same(saved[name], value, default):
                return False
        elif value not in (None, False, default):
            return False
    # What is older than this version must have been off.
    values_of_removed = [value for name, value in saved.items() if name not in current]
    return all(value is None for value in values_of_removed)


def continue_run(config: Namespace, run: EarlierRun, step: int) -> None:
    """Change ``config`` so that it goes on after ``step``, in the folder and the metrics file of an earlier run."""
    config.ckpt_path = None
    if run.checkpoint:
        config.ckpt_path = str(run.checkpoint)

    loggers = configured_loggers(config)
    for logger in loggers:
        # Lightning's own would delete the rows that are there.
        if "CSVLogger" in str(logger.class_path):
            logger.class_path = "layershuffle.training.metrics_file.MetricsFile"
        if "MetricsFile" in str(logger.class_path):
            logger.init_args["from_step"] = step
        # The first logger names the run's folder: W&B's by the id and the project of its run, MLflow's by the run's id.
        if "Wandb" in str(loggers[0].class_path):
            run_loggers.continue_wandb(logger, {"id": run.folder.name, "project": run.folder.parent.name})
        elif "MLFlow" in str(loggers[0].class_path):
            loggers[0].init_args["run_id"] = run.folder.name
        elif "version" in logger.init_args:
            logger.init_args["version"] = run.folder.name
        # Steps that were logged after the checkpoint are run again, and TensorBoard would show them twice.
        if "TensorBoard" in str(logger.class_path):
            logger["dict_kwargs"] = {**(logger.get("dict_kwargs") or {}), "purge_step": step}


def place_loggers(config: Namespace) -> None:
    """Make the loggers without a folder of their own write to ``--trainer.default_root_dir``, or else to ``runs``."""
    loggers = configured_loggers(config)
    for logger in loggers:
        place(logger, config.trainer.default_root_dir)
    # MLflow keeps what it logs in a database or on a server, and knows no folder for checkpoints.
    if loggers and "MLFlow" in str(loggers[0].class_path) and not config.trainer.default_root_dir:
        config.trainer.default_root_dir = loggers[0].init_args["save_dir"]


def place(logger: Namespace | None, folder: str | None = None) -> None:
    """Make a logger without a folder of its own, as its parsed config says, write to ``folder`` or else to ``runs``."""
    loggers_defaults = (None, ".", "runs")
    if logger and logger.init_args.get("save_dir", "") in loggers_defaults:
        logger.init_args["save_dir"] = folder or "runs"
    # MLflow's own default is a folder of files, which its newer versions refuse.
    if logger and "MLFlow" in str(logger.class_path) and not logger.init_args.get("tracking_uri"):
        save_dir = Path(logger.init_args["save_dir"])
        save_dir.mkdir(parents=True, exist_ok=True)
        logger.init_args["tracking_uri"] = f"sqlite:///{save_dir / 'mlflow.db'}"


def configured_loggers(config: Namespace) -> list[Namespace]:
    """The configs of the trainer's loggers."""
    loggers = config.trainer.logger
    if not isinstance(loggers, list):
        loggers = [loggers]
    return [logger for logger in loggers if hasattr(logger, "class_path")]


def run_folder(trainer: pl.Trainer) -> Path:
    """The folder of a trainer's run, which holds its config.yaml.

    Raises UserError if the logger's name or version leads out of the folder of all runs.
    """
    if not trainer.loggers:
        return Path(trainer.default_root_dir) / "checkpoints"
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    for name in (str(logger.name), version):
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise UserError(f"{name} can't name a run, whose folder is in that of all runs: choose another name")
    return Path(logger.save_dir or trainer.default_root_dir) / str(logger.name) / version


def remove_empty(folder: Path, also: Collection[str] = ()) -> None:
    """Remove the folder of a run that failed before it had anything to keep.

    Its configuration is nothing to keep, nor are files with the names ``also``.
    """
    worthless = (CONFIG_FILE, *also)
    if any(path.is_file() and path.name not in worthless for path in folder.rglob("*")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # The parent holds other runs.
        folder.parent.rmdir()


def last_checkpoint(folder: Path, logged: bool, dirpath: str | None) -> Path:
    """The path of the checkpoint that a run resumes from.

    Args:
        folder: the run's folder.
        logged: whether the run has a logger.
        dirpath: the folder that the user has chosen for checkpoints, if any.
    """
    if dirpath:
        return Path(dirpath) / "last.ckpt"
    if logged:
        folder = folder / "checkpoints"
    return folder / "last.ckpt"


def refuse_to_overwrite(trainer: pl.Trainer, dirpath: str | None, ckpt_path: str | None) -> None:
    """Raise a UserError if a run would write its checkpoints over those of another one.

    Args:
        trainer: the run's trainer.
        dirpath: the folder that the user has chosen for checkpoints, if any.
        ckpt_path: the checkpoint that the run goes on from, if any. In its folder, the run takes its place.
    """
    if not trainer.is_global_zero:
        return  # The loggers of the other processes don't know the folder yet.
    last = last_checkpoint(run_folder(trainer), bool(trainer.loggers), dirpath)
    goes_on_there = ckpt_path is not None and Path(ckpt_path).resolve().parent == last.resolve().parent
    if last.is_file() and not goes_on_there:
        raise UserError(
            f"{last} is of another run, which would be lost: give this one another folder, or --ckpt_path {last} to "
            "go on from it"
        )
