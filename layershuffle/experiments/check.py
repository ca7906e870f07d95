"""Finds mistakes in an experiment's settings before anything runs."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from layershuffle.errors import UserError
from layershuffle.experiments.actions import Actions
from layershuffle.experiments.execution import arguments_of
from layershuffle.experiments.runs import Run, Task


def check(runs: Iterable[Run], folder: Path, actions: Actions) -> None:
    """Check that every config of ``runs`` exists, every option is known, and every value can be read.

    Args:
        runs: what to check, each after the runs it needs.
        folder: of the experiment.
        actions: these read the arguments of the tasks.

    Raises:
        UserError: if there is a mistake; it names the first run that has it.
    """
    checker = Checker(folder, actions)
    for run in runs:
        for task in run.tasks:
            try:
                checker.check(task, run)
            except UserError as error:
                raise UserError(f"{run.name} can't {task.action}: {error}") from error


class Checker:
    """Reads the arguments of tasks, and remembers what their models are trained on.

    Args:
        folder: of the experiment.
        actions: these read the arguments of the tasks.
    """

    def __init__(self, folder: Path, actions: Actions) -> None:
        self.folder = folder
        self.actions = actions
        self.data_of: dict[str, Any] = {}
        """The data set that the model of each run is trained on, by the run's name."""
        self.parsed: dict[str, Namespace] = {}
        """The parsed arguments by what decides them. Parsing takes long, and most runs differ only in their seed."""

    def check(self, task: Task, run: Run) -> None:
        """Read the arguments of a task; raises UserError if one is wrong."""
        # Evaluations and studies don't name the data, but have options of it. What no run made, such as a timm model,
        # has no data here.
        data = self.data_of.get(task.models[0]) if task.models else None
        key = json.dumps([task.action, asdict(task.settings), str(data)])
        if key not in self.parsed:
            self.parsed[key] = self.actions[task.action].parse(arguments_of(task, run, self.folder), data)
        # The runs come after those they need, so that the data sets of a task's models are known already.
        if task.action == "train":
            self.data_of[run.name] = self.parsed[key].data.as_dict()
        elif task.action == "merge":
            self.data_of[run.name] = data
