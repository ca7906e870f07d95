"""Runs one cell of an experiment, and tells whether it has been run."""

import fcntl
import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layershuffle.commands.analyse import analyse_command
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.merge import merge_command
from layershuffle.commands.train import train
from layershuffle.errors import UserError
from layershuffle.experiments import Cell, Step
from layershuffle.results import write_whole
from layershuffle.version import __version__

COMMANDS: dict[str, tuple[str, Callable[[list[str]], Any]]] = {
    "train": ("train.py", train),
    "evaluate": ("evaluate.py", evaluate_command),
    "analyse": ("-m layershuffle.commands.analyse", analyse_command),
    "merge": ("-m layershuffle.commands.merge", merge_command),
}
RECORD = "cell.json"
"""Says in a cell's folder which of its steps were finished, with which arguments and in what time."""


def run(cell: Cell, folder: Path) -> None:
    """Run the steps of ``cell`` that aren't finished; training goes on from where it was stopped.

    Args:
        cell: the cells that it needs must be finished.
        folder: of the experiment.

    Raises:
        UserError: (a ValueError) if a step does, or another process runs this cell.
    """
    own = folder / cell.name
    own.mkdir(parents=True, exist_ok=True)
    with _locked(own):
        done = _done(own)
        for step in cell.steps:
            if _is_finished(step, done, own):
                continue
            arguments = _in_folders(step, cell, folder)
            if step.command == "train":
                arguments += _run_folder(own)
            script, command = COMMANDS[step.command]
            print(f"$ python {script} {shlex.join(arguments)}", flush=True)
            started = time.monotonic()
            command(arguments)
            done[step.output] = {
                "arguments": list(step.arguments),
                "seconds": round(time.monotonic() - started, 1),
                "version": __version__,
            }
            write_whole(own / RECORD, json.dumps(done, indent=1))


def finished(cell: Cell, folder: Path) -> bool:
    """Whether every step has been run.

    Raises:
        UserError: (a ValueError) if the record is damaged, or a step was run with other arguments than it has now.
    """
    own = folder / cell.name
    done = _done(own)
    return all(_is_finished(step, done, own) for step in cell.steps)


def _is_finished(step: Step, done: dict[str, Any], own: Path) -> bool:
    record = done.get(step.output)
    if record is not None and record["arguments"] != list(step.arguments):
        raise UserError(f"{own} was made with other options than it has now: remove it, or give another --output")
    return record is not None and (own / step.output).is_file()


def _done(own: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((own / RECORD).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError) as error:
        raise UserError(f"{own / RECORD} is damaged: remove {own} to run the cell again") from error


def _in_folders(step: Step, cell: Cell, folder: Path) -> list[str]:
    def placed(argument: str) -> str:
        for name in cell.needs:
            argument = argument.replace(f"{{{name}}}", str(folder / name))
        return argument.replace("{}", str(folder / cell.name))

    return [placed(argument) for argument in step.arguments]


def _run_folder(own: Path) -> list[str]:
    """What makes train.py keep its metrics in the cell's folder, and go on with what is there."""
    attempt = 1 + len(list(own.glob("attempt_*")))
    arguments = [f"--trainer.logger.save_dir={own.parent}", f"--trainer.logger.name={own.name}"]
    arguments += [f"--trainer.logger.version=attempt_{attempt}", "--trainer.enable_progress_bar=false"]
    return arguments + [f"--ckpt_path={own / 'last.ckpt'}"] * (own / "last.ckpt").is_file()


@contextmanager
def _locked(own: Path) -> Iterator[None]:
    """Keeps out other processes, also on other machines where the file system passes locks on; a kill unlocks."""
    with (own / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{own} is being run by another process") from error
        yield
