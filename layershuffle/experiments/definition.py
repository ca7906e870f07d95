"""What an experiment's YAML file can say, and how it is read."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from layershuffle.config_files import unknown
from layershuffle.errors import UserError
from layershuffle.experiments.matrix import expand
from layershuffle.files import read_yaml


@dataclass(frozen=True)
class Settings:
    """What a training, an evaluation or a study is told.

    Attributes:
        configs: names of configs, such as "model/vit_b16", or paths of YAML files, which start from the working folder
            as in every command. Later ones win.
        options: options of the command by name, without the dashes, such as {"trainer.max_epochs": 20}. They win over
            the configs.
    """

    configs: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def then(self, later: "Settings") -> "Settings":
        """These settings followed by others, which win."""
        return Settings([*self.configs, *later.configs], {**self.options, **later.options})

    def with_options(self, options: dict[str, Any]) -> "Settings":
        """These settings with more options, which win."""
        return Settings(self.configs, {**self.options, **options})


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of trained models.

    Attributes:
        configs: as in ``Settings``.
        options: as in ``Settings``, such as {"random_orders": 5}.
        methods: the methods whose models are evaluated; by default all.
    """

    configs: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    methods: list[str] | None = None

    @property
    def settings(self) -> Settings:
        """What the evaluation is told."""
        return Settings(self.configs, self.options)


@dataclass(frozen=True)
class Frozen:
    """A model that is studied as it is.

    Attributes:
        model: its name or path, such as a timm model.
        configs: as in ``Settings``; a model that wasn't trained here has no data of its own.
        options: as in ``Settings``.
    """

    model: str
    configs: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """What the study is told."""
        return Settings(self.configs, self.options)


@dataclass(frozen=True)
class Setup:
    """A backbone on a data set, refined by several methods.

    Attributes:
        train: the settings that all trainings share.
        methods: the settings that each method adds.
        evaluations: by the name of the results file without its ``.json``.
        base: the settings that are added for an ordinary training whose model all methods start from, as they start
            from one pretrained backbone in the paper; null where the backbone is pretrained.
        frozen: pretrained models that are studied as they are, by their name in ``analyse``.
        merge: methods whose models, one per seed, are merged layer by layer, once per seed.
        analyse: studies (representations, contributions), each with the methods or frozen models to compare.
        grid: options of the training and the values to try, such as {model.optimizer.lr: [0.001, 0.002]}. Each method
            is trained once with every combination, with the experiment's first seed. The one with the lowest
            validation loss is then used for its models. No test image is used for the choice.
    """

    train: Settings
    methods: dict[str, Settings]
    evaluations: dict[str, Evaluation] = field(default_factory=dict)
    base: Settings | None = None
    frozen: dict[str, Frozen] = field(default_factory=dict)
    merge: list[str] = field(default_factory=list)
    analyse: dict[str, list[str]] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)

    def evaluations_of(self, method: str) -> dict[str, Evaluation]:
        """The evaluations of a method's models, by name."""
        chosen = {}
        for name, evaluation in self.evaluations.items():
            methods = evaluation.methods
            if methods is None or method in methods:
                chosen[name] = evaluation
        return chosen


@dataclass(frozen=True)
class Experiment:
    """The content of an experiment's file.

    Attributes:
        setups: setups by name.
        seeds: every method is run with each of them. The first one is also that of base trainings and grids.
        title: what the report is called; by default the name of its folder.
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
    raw_content = read_yaml(path)
    # The matrices are expanded first, because the parser would take "{k}" for a mapping.
    try:
        content = _expanded(raw_content)
        parsed = parser.parse_object({"experiment": content})
        experiment: Experiment = parser.instantiate_classes(parsed).experiment
    except (ArgumentError, TypeError, ValueError) as error:
        raise UserError(f"{path} is not an experiment: {error}") from error

    # The parser has checked names and types of all fields. It can't know that values name methods.
    for setup in experiment.setups.values():
        _check_names(path, setup)
        for option, values in setup.grid.items():
            if not values:
                raise UserError(f"{path} has no values for {option} in a grid")
    return experiment


def _expanded(content: Any) -> Any:
    """The file's content in which each ``matrix`` is written out."""
    # What has no setups is left to the parser, which says what should stand there.
    if not isinstance(content, dict) or not isinstance(content.get("setups"), dict):
        return content
    setups = {name: _with_expanded_parts(setup) for name, setup in content["setups"].items()}
    return {**content, "setups": setups}


def _with_expanded_parts(setup: Any) -> Any:
    """A setup in which the matrices of methods and evaluations are written out."""
    # So is what is no mapping.
    if not isinstance(setup, dict):
        return setup
    expanded = dict(setup)
    for part in ("methods", "evaluations"):
        if part in setup:
            expanded[part] = expand(setup[part])
    return expanded


def _check_names(path: Path, setup: Setup) -> None:
    """Raise UserError if a setup names a method that it doesn't have."""
    named = list(setup.merge)
    # A study may also look at frozen models, which are no methods.
    for methods in setup.analyse.values():
        named += [method for method in methods if method not in setup.frozen]
    for evaluation in setup.evaluations.values():
        named += evaluation.methods or []
    for method in named:
        if method not in setup.methods:
            raise UserError(f"{path} merges, analyses or evaluates {method}, which is not one of its methods")
