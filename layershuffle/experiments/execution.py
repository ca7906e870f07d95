"""Executes one run of an experiment, and tells whether it was executed before.

A run is a sequence of tasks, such as a training and the evaluation of what it has trained. Its record, a file in its
folder which only this module reads and writes, keeps the *request* of each finished task and of the task that was begun
last: everything that decides what the task makes. So a run can be killed at any time and continued by the same command,
and results that were made with other settings are noticed.
"""

import csv
import json
import logging
import shlex
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from layershuffle.errors import UserError
from layershuffle.experiments.actions import Actions, as_arguments
from layershuffle.experiments.definition import Settings
from layershuffle.experiments.runs import BEST, Run, Task
from layershuffle.files import WriterLock, read_json, write_whole
from layershuffle.version import __version__

logger = logging.getLogger(__name__)

RECORD = "run.json"
"""This file in a run's folder says which of its tasks were finished, with which settings and in what time.

Its keys are the tasks' output files, such as "best.ckpt", and RUNNING.
"""
RUNNING = "running"
"""The key of the task that was begun last, until it is finished."""
LOG = "log.txt"
"""This file in a run's folder has what its processes on this machine printed."""
METRICS = "training/metrics.csv"
"""What Lightning's CSVLogger writes for the options that ``arguments_of`` gives to a training."""


def execute(run: Run, folder: Path, actions: Actions) -> None:
    """Do the tasks of ``run`` that aren't finished; a training continues where it was stopped.

    Args:
        run: the runs that it needs must be finished.
        folder: of the experiment.
        actions: what its tasks can do.

    Raises:
        UserError: if a task raises one, or another process is executing this run.
    """
    run_folder = folder / run.name
    run_folder.mkdir(parents=True, exist_ok=True)
    # Two processes in one folder would overwrite each other's checkpoints.
    with WriterLock(run_folder):
        record = _read_record(run_folder)
        for task in run.tasks:
            request = _request(task, run, folder)
            if _task_is_finished(task, request, record, run_folder):
                continue
            # If this process is killed, the next one can tell whether the checkpoint that it is to continue from was
            # made with the same settings.
            write_whole(run_folder / RECORD, json.dumps({**record, RUNNING: request}, indent=1))
            seconds = _perform(task, run, folder, actions)
            record.pop(RUNNING, None)
            record[task.output] = {
                **request,
                "seconds": round(seconds, 1),
                "finished": datetime.now(UTC).isoformat(),
                "version": __version__,
            }
            write_whole(run_folder / RECORD, json.dumps(record, indent=1))


def is_finished(run: Run, folder: Path) -> bool:
    """Whether every task has been done; raises UserError if one was done with other settings than it has now."""
    run_folder = folder / run.name
    record = _read_record(run_folder)
    for task in run.tasks:
        request = _request(task, run, folder)
        if not _task_is_finished(task, request, record, run_folder):
            return False
    return True


def best_trial(trials: Iterable[str], folder: Path) -> str:
    """The name of the trial with the lowest validation loss; raises UserError if one has no such loss."""
    return min(trials, key=lambda name: validation_loss(folder / name))


def validation_loss(run_folder: Path) -> float:
    """The lowest validation loss of a run's training, which is that of its best.ckpt, in nats.

    Raises UserError if it wasn't logged.
    """
    # Most rows are of training steps, and have no validation loss.
    losses = [float(row["val/loss"]) for row in metrics(run_folder) if row.get("val/loss")]
    if not losses:
        raise UserError(f"{run_folder / METRICS} has no validation loss: a grid needs the trainer's default logger")
    return min(losses)


def metrics(run_folder: Path) -> list[dict[str, str]]:
    """The rows that a run's training has logged, by the names of their columns; none before its first one."""
    path = run_folder / METRICS
    if not path.is_file():
        return []
    # The training may be writing a line at this moment, which can end anywhere.
    with path.open(newline="", errors="replace") as file:
        return list(csv.DictReader(file))


def arguments_of(task: Task, run: Run, folder: Path) -> list[str]:
    """The arguments of a task's action."""
    run_folder = folder / run.name
    models = [_model_path(model, run, folder) for model in task.models]
    # These options come after those of the experiment's file, and so win over them.
    options: dict[str, Any] = {}
    if task.seed is not None:
        options["seed"] = task.seed
    if task.action != "train":
        options["output"] = str(run_folder / task.output)
        return as_arguments(models, task.settings.with_options(options))

    # A training takes the model to start from as an option, and the other actions take it as a positional argument.
    if models:
        options["model.pretrained"] = models[0]
    # Checkpoints and METRICS are kept in the run's folder, and a training that was stopped continues from there.
    options["checkpoint.dirpath"] = str(run_folder)
    options["trainer.logger.save_dir"] = str(run_folder.parent)
    options["trainer.logger.name"] = run_folder.name
    options["trainer.logger.version"] = "training"
    # The output goes to a log file, and several trainings may run side by side.
    options["trainer.enable_progress_bar"] = False
    options["resume"] = True
    return as_arguments([], task.settings.with_options(options))


def _perform(task: Task, run: Run, folder: Path, actions: Actions) -> float:
    """Do a task, and return the seconds that it took."""
    # A training after a grid takes the options of the best trial, which is known only now that all are finished.
    if task.action == "train" and run.trials:
        best = best_trial(run.trials, folder)
        # A trial with the seed of this run has been trained just as this run would be.
        if best.endswith(f"/seed{run.seed}"):
            return _take_over(best, run, folder)
        task = replace(task, settings=task.settings.with_options(run.trials[best]))
    arguments = arguments_of(task, run, folder)
    logger.info("$ layershuffle %s %s", task.action, shlex.join(arguments))
    started = time.monotonic()
    actions[task.action].perform(arguments)
    return time.monotonic() - started


def _take_over(trial: str, run: Run, folder: Path) -> float:
    """Copy what a trial has trained into the folder of a run, and return the seconds that the trial took."""
    logger.info("%s is %s", run.name, trial)
    # The run has a record of its own, and a log that this process may be writing.
    own = shutil.ignore_patterns(RECORD, LOG)
    shutil.copytree(folder / trial, folder / run.name, ignore=own, dirs_exist_ok=True)
    return float(_read_record(folder / trial)[BEST]["seconds"])


def _model_path(model: str, run: Run, folder: Path) -> str:
    """A task's model as actions take it: the best checkpoint if it is one of a run, otherwise its name."""
    if model == run.name or model in run.needs:
        return str(folder / model / BEST)
    return model


def _task_is_finished(task: Task, request: dict[str, Any], record: dict[str, Any], run_folder: Path) -> bool:
    """Whether a task has been done; raises UserError if it was done or begun with another request."""
    # What the record says of this task, whether it was finished or only begun.
    finished = record.get(task.output)
    earlier = finished
    if earlier is None:
        running = record.get(RUNNING) or {}
        if running.get("output") == task.output:
            earlier = running

    # Results of other settings must not pass for results of these. What ``execute`` adds to the request of a finished
    # task, such as its time, is not compared.
    if earlier and any(earlier.get(key) != value for key, value in request.items()):
        raise UserError(
            f"{run_folder} was made with other options, or from another model, than it has now: remove it, or give "
            "another --folder"
        )
    # Someone may have removed the file, to have it made again.
    return finished is not None and (run_folder / task.output).is_file()


def _request(task: Task, run: Run, folder: Path) -> dict[str, Any]:
    """What a task is to do, in plain values. Two tasks with the same request make the same file.

    The contents of configs are not part of it, but their names are.
    """
    settings: Settings = task.settings
    request = {
        "output": task.output,
        "action": task.action,
        "models": list(task.models),
        "seed": task.seed,
        **asdict(settings),
        # If a run that this one needs is trained again, what was made from its first model is out of date.
        "needs": {name: _finished_at(folder / name) for name in run.needs},
    }
    # By way of JSON, so that it equals what will be read from the record, which has lists in place of tuples.
    return dict(json.loads(json.dumps(request)))


def _finished_at(run_folder: Path) -> str | None:
    """When the model of a run was finished."""
    entry = _read_record(run_folder).get(BEST, {})
    return entry.get("finished")


def _read_record(run_folder: Path) -> dict[str, Any]:
    """The content of the run's record; empty before its first task has begun."""
    if not (run_folder / RECORD).exists():
        return {}
    try:
        return dict(read_json(run_folder / RECORD, most=16 << 20))
    except (ValueError, TypeError) as error:
        raise UserError(f"{run_folder / RECORD} is damaged: remove {run_folder} to execute the run again") from error
