"""The runs that make up an experiment."""

import fnmatch
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from layershuffle.errors import UserError
from layershuffle.experiments.definition import Experiment, Settings, Setup

BEST = "best.ckpt"
"""The checkpoint that a training or a merge leaves in the run's folder."""
VALIDATES_APART = "layershuffle.training.callbacks.ValidatesApart"
"""This callback refuses a training whose validation images are test images."""
Action = Literal["train", "evaluate", "analyse", "merge"]


@dataclass(frozen=True)
class Task:
    """One thing that a run does, and the file that this leaves in the run's folder.

    Attributes:
        action: what is done.
        settings: what the action is told.
        output: the name of the file.
        models: the models to start from, or to look at: names of runs, whose best checkpoint is meant, or else names
            that ``layershuffle.load`` takes.
        seed: decides everything random; None for the action's default.
    """

    action: Action
    settings: Settings
    output: str
    models: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True)
class Run:
    """The smallest piece of an experiment that is run, skipped or reported as a whole.

    Attributes:
        setup: the setup that it belongs to.
        kind: the method; or "base", "METHOD_merged", or a study.
        seed: the seed of its training.
        tasks: what it does, one after the other.
        needs: the names of the runs that it starts from.
        point: of a trial, which is a training of a grid: its values, such as "lr=0.001".
        trials: the trials by name, of which the one with the lowest validation loss decides how this run is trained,
            and the options that each of them stands for.
    """

    setup: str
    kind: str
    seed: int
    tasks: tuple[Task, ...]
    needs: tuple[str, ...] = ()
    point: str = ""
    trials: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """``setup/method/seedN``, or ``setup/method/grid/lr=0.001/seedN``; also the run's folder."""
        return run_name(self.setup, self.kind, self.seed, self.point)


def run_name(setup: str, kind: str, seed: int, point: str = "") -> str:
    """The name of a run with these attributes."""
    grid = f"/grid/{point}" if point else ""
    return f"{setup}/{kind}{grid}/seed{seed}"


def list_runs(experiment: Experiment, seeds: Sequence[int] | None = None, only: Sequence[str] = ()) -> list[Run]:
    """The runs of an experiment, each after those it needs.

    Args:
        experiment: what ``definition.read`` returned.
        seeds: these replace the experiment's own.
        only: patterns (``*`` for anything). Runs are kept if their name, or a part of it from slash to slash, matches
            one of them, or if such a run needs them.

    Raises:
        UserError: if a pattern matches nothing or a seed is named twice.
    """
    if seeds is None:
        seeds = experiment.seeds
    if len(set(seeds)) < len(seeds) or not seeds:
        raise UserError(f"seeds are different numbers, at least one, not {' '.join(map(str, seeds))}")

    runs: list[Run] = []
    for name, setup in experiment.setups.items():
        runs += SetupRuns(name, setup, seeds, experiment.seeds[0]).all_runs()

    # What a chosen run needs is chosen too. From the end to the beginning, because runs stand after those they need: so
    # one pass also finds what the needed ones need.
    chosen = _matching(runs, only)
    for run in reversed(runs):
        if run.name in chosen:
            chosen.update(run.needs)
    return [run for run in runs if run.name in chosen]


def results_of(runs: Iterable[Run]) -> list[str]:
    """The results files that runs leave, by their paths in the experiment's folder."""
    # Only JSON files are results: trainings and merges leave checkpoints.
    results = []
    for run in runs:
        results += [f"{run.name}/{task.output}" for task in run.tasks if task.output.endswith(".json")]
    return results


def _matching(runs: Sequence[Run], patterns: Sequence[str]) -> set[str]:
    """The names of the runs that match one of the patterns, or of all if there is no pattern."""
    chosen: set[str] = set()
    for pattern in patterns or ["*"]:
        # With slashes around both, a pattern matches whole parts of the name: "seed1" isn't found in "seed10".
        whole_parts = f"*/{pattern}/*"
        names = {run.name for run in runs if fnmatch.fnmatch(f"/{run.name}/", whole_parts)}
        if not names:
            raise UserError(f"no run is named {pattern}: --dry_run without --only lists them all")
        chosen |= names
    return chosen


class SetupRuns:
    """Makes the runs of one setup.

    Args:
        name: the setup's name.
        setup: its content.
        seeds: the seeds of its methods.
        first_seed: the seed of its base training and its grid.
    """

    def __init__(self, name: str, setup: Setup, seeds: Sequence[int], first_seed: int) -> None:
        self.name = name
        self.setup = setup
        self.seeds = seeds
        self.first_seed = first_seed
        # The names of the runs that every training starts from: the base training, or none.
        self.bases: tuple[str, ...] = ()
        if setup.base is not None:
            self.bases = (run_name(name, "base", first_seed),)

    def all_runs(self) -> list[Run]:
        """The runs of all kinds, each after those it needs."""
        return [*self.base(), *self.trials(), *self.trainings(), *self.merged(), *self.studies()]

    def base(self) -> list[Run]:
        """The training whose model all methods start from, if there is one."""
        if self.setup.base is None:
            return []
        task = Task("train", self.setup.train.then(self.setup.base), BEST, seed=self.first_seed)
        return [Run(self.name, "base", self.first_seed, (task,))]

    def trials(self) -> list[Run]:
        """The trainings of the grid: with every combination of values, each method."""
        runs = []
        for point, options in self._points().items():
            for method in self.setup.methods:
                training = self._training(method, self.first_seed)
                # A choice by images that the models are later tested on would make all scores too good.
                settings = _with_callback(training.settings.with_options(options), VALIDATES_APART)
                task = Task("train", settings, BEST, self.bases, self.first_seed)
                runs.append(Run(self.name, method, self.first_seed, (task,), self.bases, point))
        return runs

    def trainings(self) -> list[Run]:
        """The training and the evaluations of each method with each seed."""
        points = self._points()
        runs = []
        for seed in self.seeds:
            for method in self.setup.methods:
                # The grid is tried with one seed, and its choice holds for all. Which point is best is only known when
                # the run is executed, so that it carries the options of all of them.
                trials = {}
                for point, options in points.items():
                    trial = run_name(self.name, method, self.first_seed, point)
                    trials[trial] = options
                tasks = (self._training(method, seed), *self._evaluations(method, method, seed))
                needs = (*self.bases, *trials)
                runs.append(Run(self.name, method, seed, tasks, needs, trials=trials))
        return runs

    def merged(self) -> list[Run]:
        """The models of a method's seeds, merged once per seed; of a single seed there is nothing to merge."""
        if len(self.seeds) < 2:
            return []
        runs = []
        # Each seed here is that of a merge, which takes other layers from the same models.
        for method in self.setup.merge:
            kind = f"{method}_merged"
            sources = tuple(run_name(self.name, method, seed) for seed in self.seeds)
            for seed in self.seeds:
                merge = Task("merge", Settings(), BEST, sources, seed)
                tasks = (merge, *self._evaluations(method, kind, seed))
                runs.append(Run(self.name, kind, seed, tasks, sources))
        return runs

    def studies(self) -> list[Run]:
        """A run for each study, which looks at the models of the first seed and at frozen ones."""
        runs = []
        for study, models in self.setup.analyse.items():
            tasks = []
            needs = []
            for name in models:
                frozen = self.setup.frozen.get(name)
                # A frozen model needs no run, but its settings have to name data.
                if frozen:
                    model = frozen.model
                    settings = frozen.settings
                else:
                    model = run_name(self.name, name, self.seeds[0])
                    settings = Settings()
                    needs.append(model)
                settings = settings.with_options({"study": study})
                tasks.append(Task("analyse", settings, f"{name}.json", (model,)))
            runs.append(Run(self.name, study, self.seeds[0], tuple(tasks), tuple(needs)))
        return runs

    def _training(self, method: str, seed: int) -> Task:
        """The training of a method with a seed, from the base training's model if there is one."""
        settings = self.setup.train.then(self.setup.methods[method])
        return Task("train", settings, BEST, self.bases, seed)

    def _evaluations(self, method: str, kind: str, seed: int) -> list[Task]:
        """The evaluations of a model of ``method``; the random orders differ from seed to seed, too.

        Args:
            method: the method, which decides how its models are evaluated.
            kind: of the run that makes the model: the method, or ``METHOD_merged``.
            seed: of that run.
        """
        model = run_name(self.name, kind, seed)
        tasks = []
        for name, evaluation in self.setup.evaluations_of(method).items():
            output = f"{name}.json"
            tasks.append(Task("evaluate", evaluation.settings, output, (model,), seed))
        return tasks

    def _points(self) -> dict[str, dict[str, Any]]:
        """The points of the grid by name, such as "lr=0.001", and the options that each of them stands for."""
        if not self.setup.grid:
            return {}
        points = {}
        for values in itertools.product(*self.setup.grid.values()):
            options = dict(zip(self.setup.grid, values))
            # Of model.optimizer.lr, the last part is enough to tell the points of a grid apart.
            parts = []
            for option, value in options.items():
                short_name = option.split(".")[-1]
                parts.append(f"{short_name}={value}")
            # The name becomes a folder, and a value may be a path.
            name = ",".join(parts).replace("/", "_")
            if name in points:
                raise UserError(f"setup {self.name}: two points of its grid would have the same folder, {name}")
            points[name] = options
        return points


def _with_callback(settings: Settings, callback: str) -> Settings:
    """Settings of a training with one more callback."""
    # The + of jsonargparse appends to the trainer's callbacks, which a config may set. Settings have each option
    # only once, so that what is appended already must be kept.
    option = "trainer.callbacks+"
    if option not in settings.options:
        return settings.with_options({option: callback})
    callbacks = settings.options[option]
    if not isinstance(callbacks, list):
        callbacks = [callbacks]
    return settings.with_options({option: [*callbacks, callback]})
