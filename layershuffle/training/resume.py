"""``train.py --resume auto``: finds the run that the same command has begun."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import Namespace

from layershuffle.errors import UserError
from layershuffle.files import read_yaml
from layershuffle.training.last_checkpoint import last_path

UNLIKE = ("config", "ckpt_path", "resume")
"""What may differ between two commands that are the same."""


class Begun(NamedTuple):
    """A run that was begun: its folder, and its last checkpoint if it has come so far."""

    folder: Path
    last: Path | None


def find(config: Namespace, asked: str) -> Begun | None:
    """The run with the same options as ``config``, whose YAML is ``asked``; None if there is none.

    Of several the newest that has a checkpoint.
    """
    same = _options(yaml.safe_load(asked))
    found = [Begun(path.parent, _last(config, path.parent)) for path in _configs(config) if _read(path) == same]
    return max(
        found,
        key=lambda run: (run.last is not None, (run.folder / "config.yaml").stat().st_mtime_ns),
        default=None,
    )


def refuse_another(config: Namespace) -> None:
    """Raise a UserError if the folder that a new run's checkpoints would go to has another run's."""
    folder = _folder(config)
    if folder and (other := _last(config, folder)):
        raise UserError(
            f"{other} is of another run, which would be lost: give this one another folder, or --ckpt_path {other} to "
            "go on from it"
        )


def go_on(config: Namespace, begun: Begun, step: int) -> None:
    """Make ``config`` that of the run that was begun and has come to ``step``: its folder, metrics and checkpoint."""
    config.ckpt_path = str(begun.last) if begun.last else None
    loggers = _loggers(config)
    for logger in loggers:
        if "CSVLogger" in str(logger.class_path):  # which would delete the rows that are there
            logger.class_path = "layershuffle.metrics_file.MetricsFile"
        if "MetricsFile" in str(logger.class_path):
            logger.init_args["from_step"] = step
        if "version" in logger.init_args and "Wandb" not in str(loggers[0].class_path):
            logger.init_args["version"] = begun.folder.name


def _loggers(config: Namespace) -> list[Namespace]:
    loggers = config.trainer.logger
    return [logger for logger in (loggers if isinstance(loggers, list) else [loggers]) if hasattr(logger, "class_path")]


def _last(config: Namespace, folder: Path) -> Path | None:
    """The checkpoint to go on from of the run in ``folder``, if there is one."""
    inside = folder if config.trainer.logger is False else folder / "checkpoints"
    path = last_path(config.checkpoint.dirpath or inside)
    return path if path.is_file() else None


def _folder(config: Namespace) -> Path | None:
    """Where the run will be, as far as that is settled: else it is given a new folder."""
    if config.trainer.logger is False or config.checkpoint.dirpath:
        return _runs(config)
    version = vars(loggers[0].init_args).get("version") if (loggers := _loggers(config)) else None
    return None if version is None else _runs(config) / (version if isinstance(version, str) else f"version_{version}")


def _runs(config: Namespace) -> Path:
    """The folder in which each run has one of its own, or the only run's."""
    root = Path(config.trainer.default_root_dir or os.getcwd())
    if config.trainer.logger is False:
        return root / "checkpoints"
    loggers = _loggers(config)
    given: dict[str, Any] = vars(loggers[0].init_args) if loggers else {"name": "lightning_logs"}
    name = given.get("name") or ""
    if loggers and "Wandb" in str(loggers[0].class_path):
        name = given.get("project") or os.environ.get("WANDB_PROJECT", "lightning_logs")
    return Path(given.get("save_dir") or root) / name


def _configs(config: Namespace) -> Iterator[Path]:
    return _runs(config).glob("config.yaml" if config.trainer.logger is False else "*/config.yaml")


def _read(path: Path) -> Any:
    try:
        return _options(read_yaml(path))
    except UserError:  # somebody else's
        return None


def _options(content: Any) -> Any:
    return {key: value for key, value in content.items() if key not in UNLIKE} if isinstance(content, dict) else None
