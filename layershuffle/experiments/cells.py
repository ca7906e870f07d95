"""Runs one cell of an experiment, and tells whether it has been run."""

import csv
import fcntl
import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from layershuffle.config_files import PACKAGED
from layershuffle.errors import UserError
from layershuffle.experiments.definition import Cell, Task
from layershuffle.files import read_json, write_whole
from layershuffle.version import __version__

Commands = Mapping[str, Callable[[list[str]], Any]]
"""The commands that a cell can run, by name; each takes its arguments."""
RECORD = "cell.json"
"""This file in a cell's folder says which of its tasks were finished, with which arguments and in what time."""
METRICS = "training/metrics.csv"


def run(cell: Cell, folder: Path, commands: Commands) -> None:
    """Run the tasks of ``cell`` that aren't finished; training goes on from where it was stopped.

    Args:
        cell: the cells that it needs must be finished.
        folder: of the experiment.
        commands: what its tasks can run.

    Raises:
        UserError: if a task raises one, or another process is running this cell.
    """
    own = folder / cell.name
    own.mkdir(parents=True, exist_ok=True)
    with _locked(own):
        done, needs = _done(own), _needs(cell, folder)
        for task in cell.tasks:
            if _is_finished(task, done, own, needs):
                continue
            write_whole(own / RECORD, json.dumps(done | {"running": _asked(task, needs)}, indent=1))
            arguments = [_placed(argument, cell, folder) for argument in task.arguments]
            if task.command == "train":  # Keep the metrics in the cell's folder, and go on with what is there.
                arguments += cell.grid[best(cell.grid, folder)] if cell.grid else ()
                arguments += [f"--trainer.logger.save_dir={own.parent}", f"--trainer.logger.name={own.name}"]
                arguments += [
                    "--trainer.logger.version=training",
                    "--trainer.enable_progress_bar=false",
                    "--resume",
                ]
            print(f"$ layershuffle {task.command} {shlex.join(arguments)}", flush=True)
            started = time.monotonic()
            commands[task.command](arguments)
            done.pop("running", None)
            done[task.output] = _asked(task, needs) | {
                "seconds": round(time.monotonic() - started, 1),
                "finished": datetime.now(UTC).isoformat(),
                "version": __version__,
            }
            write_whole(own / RECORD, json.dumps(done, indent=1))


def finished(cell: Cell, folder: Path) -> bool:
    """Whether every task has been run; raises UserError if one was run with other arguments than it has now."""
    own = folder / cell.name
    done, needs = _done(own), _needs(cell, folder)
    return all(_is_finished(task, done, own, needs) for task in cell.tasks)


def best(grid: Iterable[str], folder: Path) -> str:
    """The name of the cell whose model has the lowest validation loss; raises UserError if one has no such loss."""
    return min(grid, key=lambda name: validation_loss(folder / name))


def validation_loss(own: Path) -> float:
    """The lowest validation loss of a cell's training, which is that of its best.ckpt, in nats.

    Raises UserError if it wasn't logged.
    """
    losses = [float(row["val/loss"]) for row in metrics(own) if row.get("val/loss")]
    if not losses:
        raise UserError(f"{own / METRICS} has no validation loss: a grid needs the trainer's default logger")
    return min(losses)


def metrics(own: Path) -> list[dict[str, str]]:
    """The rows that the training of the cell in the folder ``own`` has logged so far."""
    path = own / METRICS
    if not path.is_file():
        return []
    with path.open(newline="", errors="replace") as file:
        return list(csv.DictReader(file))


def _is_finished(task: Task, done: dict[str, Any], own: Path, needs: dict[str, Any]) -> bool:
    record = done.get(task.output)
    stopped = done.get("running") or {}
    begun = record or (stopped if stopped.get("output") == task.output else {})
    if any(begun.get(key, value) != value for key, value in _asked(task, needs).items()):
        raise UserError(
            f"{own} was made with other options, or from another model, than it has now: remove it, or give another "
            "--output"
        )
    return record is not None and (own / task.output).is_file()


def _asked(task: Task, needs: dict[str, Any]) -> dict[str, Any]:
    return {"output": task.output, "arguments": list(task.arguments), "needs": needs}


def _needs(cell: Cell, folder: Path) -> dict[str, Any]:
    """When the models that a cell starts from were finished, so that the models of two runs can be told apart."""
    return {name: _done(folder / name).get("best.ckpt", {}).get("finished") for name in cell.needs}


def _done(own: Path) -> dict[str, Any]:
    if not (own / RECORD).exists():
        return {}
    try:
        return dict(read_json(own / RECORD, most=16 << 20))
    except (ValueError, TypeError) as error:
        raise UserError(f"{own / RECORD} is damaged: remove {own} to run the cell again") from error


def _placed(argument: str, cell: Cell, folder: Path) -> str:
    """An argument of a cell's task, in which the folders' names stand in place of the marks that Task describes."""
    path = argument.removeprefix("--config=")
    if path != argument and path.startswith("configs/") and not Path(path).is_file():
        return f"--config={PACKAGED.parent / path}"
    for name in cell.needs:
        argument = argument.replace(f"{{{name}}}", str(folder / name))
    return argument.replace("{}", str(folder / cell.name))


@contextmanager
def _locked(own: Path) -> Iterator[None]:
    """Keep other processes out, also those on other machines if the file system supports it; a kill unlocks."""
    with (own / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{own} is being run by another process") from error
        yield
