"""``train.py --resume auto``: finds the run that the same command has begun."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import Namespace

from layershuffle.checkpoints import read_file
from layershuffle.errors import UserError
from layershuffle.last_checkpoint import last_path

UNLIKE = ("config", "ckpt_path", "resume")
"""What may differ between two commands that are the same."""
MAX_CONFIG_BYTES = 1 << 20


class Begun(NamedTuple):
    """A run that was begun: its folder, and its last checkpoint if it has come so far."""

    folder: Path
    last: Path | None


def find(config: Namespace, asked: str) -> Begun | None:
    """The newest run with the same options as ``config``, whose YAML is ``asked``; None if there is none.

    Raises:
        UserError: (a ValueError) if the folder of the checkpoints is another run's.
    """
    same = _options(asked)
    found = [path for path in _configs(config) if _options(_text(path)) == same]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns, default=None)
    dirpath = config.checkpoint.dirpath
    if newest is None:
        if dirpath and last_path(dirpath).is_file():
            raise UserError(
                f"{last_path(dirpath)} is of a run with other options: give another --checkpoint.dirpath, or "
                f"--ckpt_path {last_path(dirpath)} to go on from it all the same"
            )
        return None
    last = last_path(dirpath or (newest.parent if config.trainer.logger is False else newest.parent / "checkpoints"))
    return Begun(newest.parent, last if last.is_file() else None)


def go_on(config: Namespace, begun: Begun) -> None:
    """Make ``config`` that of the run that was begun: its folder, its metrics, its last checkpoint."""
    config.ckpt_path = str(begun.last) if begun.last else None
    step = int(read_file(begun.last).get("global_step", 0)) if begun.last else 0
    for logger in _loggers(config):
        if "CSVLogger" in str(logger.class_path) or "MetricsFile" in str(logger.class_path):
            logger.init_args["version"] = begun.folder.name
        if "MetricsFile" in str(logger.class_path):
            logger.init_args["from_step"] = step


def _loggers(config: Namespace) -> list[Namespace]:
    loggers = config.trainer.logger
    return [logger for logger in (loggers if isinstance(loggers, list) else [loggers]) if hasattr(logger, "class_path")]


def _configs(config: Namespace) -> Iterator[Path]:
    root = Path(config.trainer.default_root_dir or os.getcwd())
    loggers = _loggers(config)
    if config.trainer.logger is False:
        yield from root.glob("checkpoints/config.yaml")
        return
    given: dict[str, Any] = vars(loggers[0].init_args) if loggers else {}
    name = given.get("project" if loggers and "Wandb" in str(loggers[0].class_path) else "name")
    yield from (Path(given.get("save_dir") or root) / ("lightning_logs" if name is None else name)).glob(
        "*/config.yaml"
    )


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.stat().st_size < MAX_CONFIG_BYTES else ""


def _options(text: str) -> Any:
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return {key: value for key, value in options.items() if key not in UNLIKE} if isinstance(options, dict) else None
