"""Gathers the results files below a folder into setups: a backbone on a data set, with its methods and seeds."""

import itertools
import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from layershuffle.errors import UserError
from layershuffle.report import paper
from layershuffle.results import Measure, Results, Score, estimate, figures, tables
from layershuffle.results.measures import ByClassCounts

SHAPE = {"depth": "{} layers", "embed_dim": "width {}", "patch_size": "patches of {}", "img_size": "images of {}"}
"""What a title says of a backbone whose shape isn't timm's, or isn't the paper's."""


@dataclass(frozen=True)
class Run:
    """One model's results, from one or more files.

    Attributes:
        label: its method.
        seed: of its training.
        files: the results files, with their paths from the report's folder.
    """

    label: str
    seed: int
    files: dict[str, Results] = field(default_factory=dict)

    def scores(self, protocol: str, **variant: Any) -> list[Score]:
        """Its scores of a protocol whose variant has these values; at most from one file."""
        return next(filter(None, (results.of(protocol, **variant) for results in self.files.values())), [])


@dataclass(frozen=True)
class SetupResults:
    """What was found with a backbone on a data set.

    Attributes:
        backbone: the paper's name, or timm's name and what was changed.
        data: the paper's name, or the data set's.
        name: what tells it from the other setups, or nothing if it is the only one.
        runs: by method and seed.
        studies: the results of the studying commands, each about one model, with their paths from the report's folder.
    """

    backbone: str
    data: str
    name: str = ""
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    studies: dict[str, Results] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, Results]:
        """All its results, method by method and seed by seed, the studies last."""
        runs = [run for method in self.methods for run in self.of(method)]
        return {name: results for run in runs for name, results in run.files.items()} | self.studies

    def measured(self, kind: type[Measure]) -> list[Results]:
        """The studies that hold such a measure, in the sequence of the methods."""
        found = [results for results in self.studies.values() if results.measure(kind)]
        sequence = in_papers_sequence(results.label for results in found)
        return sorted(found, key=lambda results: sequence.index(results.label))

    @property
    def methods(self) -> list[str]:
        """The methods of its runs, first the paper's in the paper's sequence."""
        return in_papers_sequence(label for label, _ in sorted(self.runs))

    @property
    def seeds(self) -> list[int]:
        """All seeds of its runs."""
        return sorted({seed for _, seed in self.runs})

    @property
    def samplers(self) -> list[str]:
        """The methods but for merged and reduced-depth models, which are compared in sections of their own."""
        return [m for m in self.methods if not (m.endswith("-merged") or m.startswith("reduced-depth-"))]

    def of(self, method: str) -> list[Run]:
        """The runs of a method, by seed."""
        return [run for (label, _), run in sorted(self.runs.items()) if label == method]

    def over_seeds(self, method: str, protocol: str, **variant: Any) -> list[list[Score]]:
        """A method's scores of a protocol whose variant has these values, of each seed that has any."""
        return [scores for run in self.of(method) if (scores := run.scores(protocol, **variant))]

    @property
    def levels(self) -> dict[str, float]:
        """Accuracies to compare with, in percent, see ``figures.levels``."""
        several = list(self.files.values())
        return figures.levels(next((results for results in several if results.measure(ByClassCounts)), several[0]))

    @property
    def in_paper(self) -> bool:
        """Whether the paper has this backbone and data set."""
        return any(key[:2] == (self.backbone, self.data) for key in paper.TABLE_1)

    def missing(self) -> list[str]:
        """The cells to be expected of results files alone: every seed of every method."""
        return [f"{m}, seed {s}" for m in self.methods for s in self.seeds if (m, s) not in self.runs]


def comparison(several: Sequence[Results], without: Container[str] = ()) -> tuple[list[str], list[list[str]], str]:
    """Methods side by side, shaped like table 1 of arXiv 2407.04513: top-1 in percent, with its 95% interval.

    The protocols ``without`` are left out. Returns the header, the rows, and a caption that says what ± stands for.
    """
    methods: dict[str, dict[object, dict[tables.Group, list[Score]]]] = {}
    for results in several:
        models = methods.setdefault(results.label, {})
        model = results.model.sha256 or results.model.seed
        models[model] = results.groups() | models.get(model, {})  # a model may have several files
    groups = dict.fromkeys(group for models in methods.values() for found in models.values() for group in found)
    rows = [
        [
            tables.name_of(group),
            *(
                tables.percent(estimate(found.get(group, []) for found in models.values()))
                for models in methods.values()
            ),
        ]
        for group in groups
        if group[0] not in without
    ]
    caption = tables.meaning({method: len(models) for method, models in methods.items()})
    return ["top-1 %", *methods], rows, caption


def in_papers_sequence(methods: Iterable[str]) -> list[str]:
    """Each method once, the paper's first."""
    found = dict.fromkeys(methods)
    return [*(m for m in paper.METHODS if m in found), *(m for m in found if m not in paper.METHODS)]


def collect(folder: Path) -> tuple[list[SetupResults], list[str]]:
    """The results below ``folder``, and a sentence for every file that was left out.

    A file that can't be read is left out. If two disagree about the same cell, both are left out. Raises UserError if
    there is no results file at all.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    complaints: list[str] = []
    read: dict[str, Results] = {}
    for path in sorted(folder.rglob("*.json")):
        name = str(path.relative_to(folder))
        if path.name.startswith(".") or not _claims_to_be_results(path):
            continue
        try:
            results = Results.load(path)
            if results.data.split == "test" or results.evaluation.is_study:
                read[name] = results
            else:
                complaints.append(f"{name} is of the {results.data.split} images; it was left out")
        except UserError as error:
            complaints.append(f"{str(error).replace(str(path), name)}; it was left out")
    setups: dict[tuple[str, str], SetupResults] = {}
    for name, results in _agreeing(read, complaints).items():
        backbone, data = _titles(results)
        setup = setups.setdefault((backbone, data), SetupResults(backbone, data))
        if results.evaluation.is_study:
            setup.studies[name] = results
            continue
        label, seed = results.label, results.model.seed or 0
        setup.runs.setdefault((label, seed), Run(label, seed)).files[name] = results
    if not setups:
        raise UserError(f"there are no results files below {folder}" + "".join(f"; {text}" for text in complaints))
    several = [len({getattr(setup, part) for setup in setups.values()}) > 1 for part in ("backbone", "data")]
    return [
        replace(setup, name=", ".join(itertools.compress((setup.backbone, setup.data), several)))
        for setup in setups.values()
    ], complaints


def _claims_to_be_results(path: Path) -> bool:
    with path.open("rb") as file:
        return b'"layershuffle_results"' in file.read(200)


def _agreeing(read: dict[str, Results], complaints: list[str]) -> dict[str, Results]:
    """``read`` without repetitions, and without files that disagree about the same cell."""
    by_cell: dict[str, list[str]] = {}
    bad: set[str] = set()
    for name, results in read.items():
        model, data = results.model, results.data
        settings = results.evaluation.to_json()
        cell = [model.config, results.label, model.seed, data.name, data.images, settings]
        others = by_cell.setdefault(json.dumps(cell, sort_keys=True), [])
        found = _found(results)
        for other in others:
            known = _found(read[other])
            if any(known[key] != found[key] for key in known.keys() & found.keys()):
                complaints.append(
                    f"{other} and {name} disagree about {results.label}, seed {model.seed}, on {data.name}; "
                    "both were left out: move one of them elsewhere, or train one with another --model.label"
                )
                bad |= {other, name}
        if all(_found(read[other]) != found for other in others):
            others.append(name)
    return {name: read[name] for names in by_cell.values() for name in names if name not in bad}


def _found(results: Results) -> dict[str, Any]:
    """Every score and measure, by what was scored or measured."""
    scores: dict[str, list[Any]] = {}
    for score in results.scores:
        scores.setdefault(json.dumps([score.protocol, score.variant, score.order], sort_keys=True), []).append(score)
    return scores | {measure.name: measure for measure in results.measures}


def _titles(results: Results) -> tuple[str, str]:
    config = results.model.config
    known = paper.BACKBONES.get(config["name"])
    usual = paper.SHAPE if known else {}
    changed = [
        text.format(config[key]) for key, text in SHAPE.items() if config.get(key) != usual.get(key) and key in config
    ]
    backbone = (known or config["name"]) + (f" ({', '.join(changed)})" if changed else "")
    return backbone, paper.DATA.get(results.data.name, results.data.name)
