"""Results by backbone, data set, method and seed."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from layershuffle.report import paper
from layershuffle.results import Measure, Results, Score
from layershuffle.results.measures import ByClassCounts, reference_levels


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
        for results in self.files.values():
            scores = results.of(protocol, **variant)
            if scores:
                return scores
        return []


@dataclass(frozen=True)
class SetupResults:
    """All results with a backbone on a data set.

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
        files: dict[str, Results] = {}
        for method in self.methods:
            for run in self.runs_of(method):
                files.update(run.files)
        files.update(self.studies)
        return files

    def measured(self, kind: type[Measure]) -> list[Results]:
        """The studies that hold such a measure, in the sequence of the methods."""
        measured = [results for results in self.studies.values() if results.measure(kind)]
        sequence = in_papers_sequence(results.label for results in measured)
        return sorted(measured, key=lambda results: sequence.index(results.label))

    @property
    def methods(self) -> list[str]:
        """The methods of its runs, first the paper's in the paper's sequence."""
        return in_papers_sequence(label for label, _ in sorted(self.runs))

    @property
    def seeds(self) -> list[int]:
        """All seeds of its runs."""
        return sorted({seed for _, seed in self.runs})

    @property
    def main_methods(self) -> list[str]:
        """The methods but for merged and reduced-depth models, which are compared in sections of their own."""
        return [method for method in self.methods if not _is_variation(method)]

    def runs_of(self, method: str) -> list[Run]:
        """The runs of a method, by seed."""
        return [run for (label, _), run in sorted(self.runs.items()) if label == method]

    def scores_by_seed(self, method: str, protocol: str, **variant: Any) -> list[list[Score]]:
        """A method's scores of a protocol whose variant has these values, of each seed that has any."""
        of_seeds = [run.scores(protocol, **variant) for run in self.runs_of(method)]
        return [scores for scores in of_seeds if scores]

    @property
    def levels(self) -> dict[str, float]:
        """Accuracies to compare with, in percent, see ``reference_levels``."""
        several = list(self.files.values())
        for results in several:
            if results.measure(ByClassCounts):
                return reference_levels(results)
        return reference_levels(several[0])

    @property
    def in_paper(self) -> bool:
        """Whether the paper has this backbone and data set."""
        return any(key[:2] == (self.backbone, self.data) for key in paper.TABLE_1)

    def missing_runs(self) -> list[str]:
        """The runs to be expected of results files alone: every seed of every method."""
        expected = itertools.product(self.methods, self.seeds)
        return [f"{method}, seed {seed}" for method, seed in expected if (method, seed) not in self.runs]


def _is_variation(method: str) -> bool:
    """Whether the method only makes something else of models of another one."""
    return method.endswith("-merged") or method.startswith("reduced-depth-")


def in_papers_sequence(methods: Iterable[str]) -> list[str]:
    """Each method once, the paper's first."""
    present = dict.fromkeys(methods)
    of_paper = [method for method in paper.METHODS if method in present]
    others = [method for method in present if method not in paper.METHODS]
    return of_paper + others
