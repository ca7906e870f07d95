"""Experiments: their YAML files, and the cells that make up an experiment."""

import fnmatch
import itertools
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from layershuffle.config_files import PACKAGED, find, unknown
from layershuffle.errors import UserError
from layershuffle.files import read_yaml

VALIDATES_APART = "--trainer.callbacks+=layershuffle.training.callbacks.ValidatesApart"
Arguments = list[str]
"""Arguments of train or evaluate, such as "--keep 3 6"; "model/vit_b16" is short for its file in configs/.

Paths of YAML files are also possible. They and all other paths start from the working folder, as in every command.
"""


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's arguments, and the methods whose models are evaluated; by default all."""

    arguments: Arguments
    methods: list[str] | None = None


@dataclass(frozen=True)
class Setup:
    """A backbone on a data set, refined by several methods.

    Attributes:
        train: the arguments of train for every run, such as [model/vit_b16, data/cifar100, trainer/gpu].
        methods: the arguments that each method adds.
        evaluations: by the name of the results file without its ``.json``.
        base: the arguments that are added for an ordinary training whose model all methods start from, as they start
            from one pretrained backbone in the paper; null where the backbone is pretrained.
        frozen: pretrained models that are studied as they are: their name in ``analyse``, and the arguments of analyse,
            of which the first is the model.
        merge: methods whose models, one per seed, are merged layer by layer, once per seed.
        analyse: studies (representations, contributions), each with the methods or frozen models to compare.
        grid: options of train and the values to try, such as {--model.optimizer.init_args.lr: [0.001, 0.002]}. Each
            method is trained once with every combination, with the experiment's first seed. The one with the lowest
            validation loss is then used for its models. No test image is used for the choice.
    """

    train: Arguments
    methods: dict[str, Arguments]
    evaluations: dict[str, Evaluation]
    base: Arguments | None = None
    frozen: dict[str, Arguments] = field(default_factory=dict)
    merge: list[str] = field(default_factory=list)
    analyse: dict[str, list[str]] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One command of a cell and the file that it leaves in the cell's folder.

    In an argument, ``{CELL}`` stands for the folder of another cell, ``{}`` for the cell's own folder, and ``configs/``
    for the folder of the configs.
    """

    command: str
    arguments: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Cell:
    """The smallest piece that is run, skipped or reported as a whole.

    Attributes:
        name: ``setup/method/seedN``, which is also its folder; in a grid ``setup/method/grid/lr=0.001/seedN``.
        tasks: what it runs, one after the other.
        needs: the cells that it starts from.
        grid: cells, of which the one with the lowest validation loss decides how this one is trained, and the arguments
            that each of them stands for.
    """

    name: str
    tasks: tuple[Task, ...]
    needs: tuple[str, ...] = ()
    grid: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment's file: setups by name, and the seeds that each of their methods is run with.

    The first seed is also that of the setups' base trainings. ``title`` is what the report is called, by default the
    name of its folder.
    """

    setups: dict[str, Setup]
    seeds: list[int]
    title: str | None = None


def read(path: Path) -> Experiment:
    """Read an experiment's file; raises UserError if it isn't there, or isn't an experiment."""
    if not path.is_file():
        raise unknown(str(path), experiment=True)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Experiment, "experiment")
    try:
        content = read_yaml(path)
        experiment: Experiment = parser.instantiate_classes(parser.parse_object({"experiment": content})).experiment
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not an experiment: {error}") from error
    for setup in experiment.setups.values():
        if not all(setup.frozen.values()):
            raise UserError(f"{path} has a frozen model without arguments: the first names the model")
        studied = [[method for method in methods if method not in setup.frozen] for methods in setup.analyse.values()]
        named = [setup.merge, *studied, *(each.methods or [] for each in setup.evaluations.values())]
        for method in (method for methods in named for method in methods):
            if method not in setup.methods:
                raise UserError(f"{path} merges, analyses or evaluates {method}, which is not one of its methods")
        for option, values in setup.grid.items():
            if not option.startswith("--") or not values:
                raise UserError(
                    f"{path} has {option}: {values} in a grid, which takes an option and a list of its values"
                )
    return experiment


def list_cells(experiment: Experiment, seeds: Sequence[int] | None = None, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of an experiment, each after those it needs.

    Args:
        experiment: what ``read`` returned.
        seeds: these replace the experiment's own.
        only: patterns (``*`` for anything). Cells are kept if their name, or a part of it from slash to slash, matches
            one of them, or if such a cell needs them.

    Raises:
        UserError: if a pattern matches nothing or a seed is named twice.
    """
    seeds = experiment.seeds if seeds is None else seeds
    if len(set(seeds)) < len(seeds) or not seeds:
        raise UserError(f"seeds are different numbers, at least one, not {' '.join(map(str, seeds))}")
    found = {
        cell.name: cell
        for name, setup in experiment.setups.items()
        for cell in _cells(name, setup, seeds, experiment.seeds[0])
    }
    wanted: set[str] = set()
    for pattern in only or ["*"]:
        matching = {name for name in found if fnmatch.fnmatch(f"/{name}/", f"*/{pattern}/*")}
        if not matching:
            raise UserError(f"no cell is named {pattern}: --dry_run without --only lists them all")
        wanted |= matching
    for cell in reversed(found.values()):
        if cell.name in wanted:
            wanted.update(cell.needs)
    return [cell for name, cell in found.items() if name in wanted]


def _cells(setup_name: str, setup: Setup, seeds: Sequence[int], base_seed: int) -> Iterator[Cell]:
    def task(command: str, arguments: Sequence[str], output: str) -> Task:
        return Task(command, (*arguments, f"--output={{}}/{output}"), output)

    def evaluations(method: str, seed: int) -> list[Task]:  # The random orders differ from seed to seed, too.
        return [
            task("evaluate", ["{}/best.ckpt", f"--seed={seed}", *_expanded(wanted.arguments)], f"{name}.json")
            for name, wanted in setup.evaluations.items()
            if method in (setup.methods if wanted.methods is None else wanted.methods)
        ]

    def name(kind: str, seed: int) -> str:
        return f"{setup_name}/{kind}/seed{seed}"

    def training(seed: int, added: Arguments, *more: str) -> Task:
        arguments = [*_expanded([*setup.train, *added]), f"--seed={seed}", "--checkpoint.dirpath={}", *more]
        return Task("train", tuple(arguments), "best.ckpt")

    bases: tuple[str, ...] = ()
    pretrained: tuple[str, ...] = ()
    if setup.base is not None:
        base = Cell(name("base", base_seed), (training(base_seed, setup.base),))
        yield base
        bases, pretrained = (base.name,), (f"--model.pretrained={{{base.name}}}/best.ckpt",)
    grids: dict[str, dict[str, tuple[str, ...]]] = {method: {} for method in setup.methods}
    for values in itertools.product(*setup.grid.values()) if setup.grid else ():
        point = tuple(f"{option}={value}" for option, value in zip(setup.grid, values))
        title = ",".join(f"{option.split('.')[-1]}={value}" for option, value in zip(setup.grid, values))
        for method, added in setup.methods.items():
            tried = name(f"{method}/grid/{title.replace('/', '_')}", base_seed)
            yield Cell(tried, (training(base_seed, added, *pretrained, *point, VALIDATES_APART),), bases)
            grids[method][tried] = point
    for seed in seeds:
        for method, added in setup.methods.items():
            tasks = (training(seed, added, *pretrained), *evaluations(method, seed))
            yield Cell(name(method, seed), tasks, (*bases, *grids[method]), grids[method])
    for method in setup.merge:
        needs = tuple(name(method, seed) for seed in seeds)
        for seed in seeds if len(needs) > 1 else ():
            merge = task("merge", [*(f"{{{cell}}}/best.ckpt" for cell in needs), f"--seed={seed}"], "best.ckpt")
            yield Cell(name(f"{method}_merged", seed), (merge, *evaluations(method, seed)), needs)
    for study, methods in setup.analyse.items():
        trained_ones = {method: name(method, seeds[0]) for method in methods if method not in setup.frozen}
        analyses = []
        for method in methods:
            model, *more = setup.frozen.get(method) or [f"{{{trained_ones[method]}}}/best.ckpt"]
            analyses.append(task("analyse", [model, *_expanded(more), f"--study={study}"], f"{method}.json"))
        yield Cell(name(study, seeds[0]), tuple(analyses), tuple(trained_ones.values()))


def _expanded(arguments: Arguments) -> list[str]:
    return [
        word
        for argument in arguments
        for word in (shlex.split(argument) if argument.startswith("-") else [f"--config={_config(argument)}"])
    ]


def _config(name: str) -> str:
    """The config's path as a cell records it: ``configs/model/vit_b16.yaml``, wherever the package is installed."""
    path = find(name)
    if not path.is_file():
        raise UserError(f"there is no file {path}; the paths in an experiment start from the folder that you work in")
    return str(path.relative_to(PACKAGED.parent) if path.is_relative_to(PACKAGED) else path)
