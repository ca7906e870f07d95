"""Results by backbone, data set, method and seed."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from layershuffle.report import paper
from layershuffle.results import Measure, Results, Score
from layershuffle.results.levels import reference_levels
from layershuffle.results.measures import ByClassCounts
from layershuffle.results.score import quality_in_tables, quality_in_words


@dataclass(frozen=True)
class Run:
    """The results of one trained model, from one or more files.

    Attributes:
        label: the method, or what ``--model.label`` calls it.
        seed: of its training.
        files: the results files, with their paths from the report's folder.
    """

    label: str
    seed: int
    files: dict[str, Results] = field(default_factory=dict)

    def scores(self, protocol: str, **variant: Any) -> list[Score]:
        """The scores of a protocol whose variants have these values, from the first file that has any."""
        # Not from all files: if two of them evaluated a protocol with different settings, their mean would mix the two.
        for results in self.files.values():
            scores = results.of(protocol, **variant)
            if scores:
                return scores
        return []


@dataclass(frozen=True)
class SetupResults:
    """All results of a backbone on a data set, see ``collect``.

    Attributes:
        backbone: the paper's name, or timm's name and what was changed.
        data: the paper's name, or the data set's.
        name: the backbone, the data or both, whichever tells it from the report's other setups; empty if it is the only
            one.
        runs: by method and seed.
        studies: the results of the studying commands, each about one model, with their paths from the report's folder.
    """

    backbone: str
    data: str
    name: str = ""
    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    studies: dict[str, Results] = field(default_factory=dict)

    # --- What there is ------------------------------------------------------------------------------------------

    @property
    def files(self) -> dict[str, Results]:
        """All its results, method by method and seed by seed, the studies last."""
        files: dict[str, Results] = {}
        for method in self.methods:
            for run in self.runs_of(method):
                files.update(run.files)
        files.update(self.studies)
        return files

    @property
    def has_several_labels(self) -> bool:
        """Whether its scores are of images that can have several labels; then they are mean average precisions."""
        return any(results.has_several_labels for results in self.files.values())

    @property
    def quality(self) -> str:
        """What its tables call a score, see ``Results.quality``."""
        return quality_in_tables(self.has_several_labels)

    @property
    def quality_in_words(self) -> str:
        """What its pictures call a score."""
        return quality_in_words(self.has_several_labels)

    def measured(self, kind: type[Measure]) -> list[Results]:
        """The studies that hold such a measure, the paper's methods first."""
        measured = [results for results in self.studies.values() if results.measure(kind)]
        sequence = in_papers_sequence(results.label for results in measured)
        return sorted(measured, key=lambda results: sequence.index(results.label))

    @property
    def methods(self) -> list[str]:
        """The methods of its runs, first the paper's, then the others by name."""
        return in_papers_sequence(label for label, _ in sorted(self.runs))

    @property
    def seeds(self) -> list[int]:
        """All seeds of its runs."""
        return sorted({seed for _, seed in self.runs})

    @property
    def main_methods(self) -> list[str]:
        """The methods without merged and reduced-depth models, which the report compares in other sections."""
        return [method for method in self.methods if not _is_variation(method)]

    def runs_of(self, method: str) -> list[Run]:
        """The runs of a method, by seed."""
        return [run for (label, _), run in sorted(self.runs.items()) if label == method]

    def scores_by_seed(self, method: str, protocol: str, **variant: Any) -> list[list[Score]]:
        """A method's scores of a protocol whose variants have these values: a list for each seed that has any."""
        by_seed = []
        for run in self.runs_of(method):
            scores = run.scores(protocol, **variant)
            if scores:
                by_seed.append(scores)
        return by_seed

    @property
    def levels(self) -> dict[str, float]:
        """Accuracies to compare with, in percent, see ``reference_levels``."""
        # Results with counts by class know how frequent each class is; without them there is only chance.
        several = list(self.files.values())
        for results in several:
            if results.measure(ByClassCounts):
                return reference_levels(results)
        return reference_levels(several[0])

    @property
    def in_paper(self) -> bool:
        """Whether table 1 of the paper has this backbone and data set."""
        return any((backbone, data) == (self.backbone, self.data) for backbone, data, _, _ in paper.TABLE_1)

    def missing_runs(self) -> list[str]:
        """The runs that are missing if every method was to have every seed that any method has."""
        missing = []
        for method, seed in itertools.product(self.methods, self.seeds):
            if (method, seed) not in self.runs:
                missing.append(f"{method}, seed {seed}")
        return missing


def _is_variation(method: str) -> bool:
    """Whether the method's models are made from those of another method."""
    # So ``layershuffle merge`` and the sampler FirstLayers name their methods.
    return method.endswith("-merged") or method.startswith("reduced-depth-")


def in_papers_sequence(methods: Iterable[str]) -> list[str]:
    """Each method once: first the paper's, as its table 1 has them, then the others, as they come."""
    present = dict.fromkeys(methods)
    of_paper = [method for method in paper.METHODS if method in present]
    others = [method for method in present if method not in paper.METHODS]
    return of_paper + others
