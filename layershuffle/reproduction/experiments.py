"""Experiments: what their YAML files say, and the cells that it comes down to."""

import fnmatch
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from jsonargparse import ArgumentError, ArgumentParser

from layershuffle.config_files import PACKAGED, find, unknown
from layershuffle.errors import UserError
from layershuffle.files import read_yaml

Arguments = list[str]
"""Of train.py or evaluate.py, such as "--keep 3 6"; "model/vit_b16" is short for its file in configs/."""


@dataclass(frozen=True)
class Evaluation:
    """What evaluate.py is told, and of which methods' models; by default all."""

    arguments: Arguments
    methods: list[str] | None = None


@dataclass(frozen=True)
class Setup:
    """A backbone on a data set, refined by several methods.

    Attributes:
        train: train.py's arguments for every run, such as [model/vit_b16, data/cifar100, trainer/gpu].
        methods: what each method adds to them.
        evaluations: by the name of the results file without its ``.json``.
        base: what the ordinary training adds that all refinements start from, as they do from one pretrained backbone
            in the paper; null where the backbone is pretrained.
        merge: methods whose models, one per seed, are merged layer by layer, once per seed.
        analyse: studies (representations, contributions), each with the methods to compare.
        epoch_minutes: how long an epoch takes, for estimates.
        evaluation_minutes: how long the evaluations of a model take, for estimates.
    """

    train: Arguments
    methods: dict[str, Arguments]
    evaluations: dict[str, Evaluation]
    base: Arguments | None = None
    merge: list[str] = field(default_factory=list)
    analyse: dict[str, list[str]] = field(default_factory=dict)
    epoch_minutes: float = 0.0
    evaluation_minutes: float = 0.0


@dataclass(frozen=True)
class Step:
    """One command of a cell and the file that it leaves in the cell's folder.

    ``{CELL}`` in an argument stands for the folder of another cell, ``{}`` for the cell's own, and ``configs/`` for
    where the configs are.
    """

    command: str
    arguments: tuple[str, ...]
    output: str


@dataclass(frozen=True)
class Cell:
    """The smallest piece that is run, skipped or reported as a whole.

    Attributes:
        name: ``setup/method/seedN``, which is also its folder.
        steps: what it runs, in turn.
        needs: the cells that it starts from.
        minutes: an estimate of how long it takes.
    """

    name: str
    steps: tuple[Step, ...]
    needs: tuple[str, ...] = ()
    minutes: float = 0.0


@dataclass(frozen=True)
class Experiment:
    """What an experiment's file says: setups by name, and the seeds that each of their methods is run with.

    The first of the seeds is also that of the setups' bases.
    """

    setups: dict[str, Setup]
    seeds: list[int]


def read(path: Path) -> Experiment:
    """Read an experiment's file.

    Raises:
        UserError: (a ValueError) if it isn't there, or is not one.
    """
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
        named = [setup.merge, *setup.analyse.values(), *(at.methods or [] for at in setup.evaluations.values())]
        for method in (method for methods in named for method in methods):
            if method not in setup.methods:
                raise UserError(f"{path} merges, analyses or evaluates {method}, which is not one of its methods")
    return experiment


def list_cells(experiment: Experiment, seeds: Sequence[int] | None = None, only: Sequence[str] = ()) -> list[Cell]:
    """The cells of an experiment, each after those it needs.

    ``seeds`` replace the experiment's own. ``only`` keeps those whose name, or a part of it from slash to slash,
    matches one of the patterns (``*`` for anything), and those that they need.

    Raises:
        UserError: (a ValueError) if a pattern matches nothing or a seed is named twice.
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
    def evaluations(method: str) -> list[Step]:
        return [
            Step(
                "evaluate", ("{}/best.ckpt", *_expanded(wanted.arguments), f"--output={{}}/{name}.json"), f"{name}.json"
            )
            for name, wanted in setup.evaluations.items()
            if method in (setup.methods if wanted.methods is None else wanted.methods)
        ]

    def name(kind: str, seed: int) -> str:
        return f"{setup_name}/{kind}/seed{seed}"

    def trained(kind: str, seed: int, added: Arguments, needs: tuple[str, ...] = ()) -> Cell:
        arguments = [*_expanded([*setup.train, *added]), f"--seed_everything={seed}", "--checkpoint.dirpath={}"]
        arguments += [f"--model.pretrained={{{base}}}/best.ckpt" for base in needs]
        steps = [Step("train", tuple(arguments), "best.ckpt"), *evaluations(kind)]
        minutes = _epochs(arguments) * setup.epoch_minutes + (len(steps) > 1) * setup.evaluation_minutes
        return Cell(name(kind, seed), tuple(steps), needs, minutes)

    bases: tuple[str, ...] = ()
    if setup.base is not None:
        base = trained("base", base_seed, setup.base)
        yield base
        bases = (base.name,)
    for seed in seeds:
        for method, added in setup.methods.items():
            yield trained(method, seed, added, bases)
    for method in setup.merge:
        needs = tuple(name(method, seed) for seed in seeds)
        for seed in seeds if len(needs) > 1 else ():
            arguments = [f"{{{cell}}}/best.ckpt" for cell in needs] + [f"--seed={seed}", "--output={}/best.ckpt"]
            steps = (Step("merge", tuple(arguments), "best.ckpt"), *evaluations(method))
            yield Cell(name(f"{method}_merged", seed), steps, needs, setup.evaluation_minutes)
    for study, methods in setup.analyse.items():
        needs = tuple(name(method, seeds[0]) for method in methods)
        analyses = [
            Step(
                "analyse",
                (f"{{{cell}}}/best.ckpt", f"--study={study}", f"--output={{}}/{method}.json"),
                f"{method}.json",
            )
            for method, cell in zip(methods, needs)
        ]
        yield Cell(name(study, seeds[0]), tuple(analyses), needs)


def _expanded(arguments: Arguments) -> list[str]:
    return [
        word
        for argument in arguments
        for word in (shlex.split(argument) if argument.startswith("-") else [f"--config={_config(argument)}"])
    ]


def _config(name: str) -> str:
    """The config's path as a cell records it: ``configs/model/vit_b16.yaml``, wherever the package is installed."""
    path = find(name)
    return str(path.relative_to(PACKAGED.parent) if path.is_relative_to(PACKAGED) else path)


def _epochs(arguments: Sequence[str]) -> int:
    words = " ".join(arguments).replace("=", " ").split()
    found = [after for word, after in pairwise(words) if word == "--trainer.max_epochs"]
    return int(found[-1]) if found and found[-1].isdecimal() else 0
