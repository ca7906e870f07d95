"""Results of an evaluation or a study, with everything needed to repeat it, and their JSON file.

They consist of scores and of measures. A ``Measure`` is anything that isn't a score, such as the similarity of layers;
its kinds are in ``results.measures``, and this file only says what they have in common.
"""

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from matplotlib.figure import Figure

from layershuffle import typed_json
from layershuffle.errors import UserError, shown
from layershuffle.files import read_json, write_whole
from layershuffle.results.provenance import DataInfo, Environment, EvaluationInfo, ModelInfo
from layershuffle.results.score import Score, ScoreColumns, quality_in_tables, quality_in_words, read_scores
from layershuffle.results.table import Table

FORMAT = 2
"""The version of the file's format. ``Results.load`` refuses all others."""
LONGEST_REASON = 300
"""How many characters a message says of what is wrong in a file."""
PARTS = ("model", "data", "evaluation", "environment", "measures", "scores")
"""The keys of the file beside the version of its format."""

M = TypeVar("M", bound="Measure")


@dataclass(frozen=True)
class Results:
    """An evaluation or a study of one model.

    Attributes:
        model: which model it was, and the config that makes it again.
        data: the data set and its arguments.
        evaluation: the protocols, their settings and the seed.
        environment: versions, device, precision and time.
        scores: one per order.
        measures: other measurements, such as the cosine similarities of the layers' activations.
        lacks: what a file of an older version doesn't have: columns of the scores, or "measures". It is kept so that
            the file is the same when it is written again.
    """

    model: ModelInfo
    data: DataInfo
    evaluation: EvaluationInfo
    environment: Environment
    scores: list[Score]
    measures: tuple["Measure", ...] = ()
    lacks: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __str__(self) -> str:
        """The tables that the commands print."""
        # The module of tables imports this one, so that it can't be imported on top.
        from layershuffle.results.tables import as_text

        return as_text(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What IPython and notebooks show of results that end a cell: the same tables."""
        printer.text(str(self))

    @property
    def label(self) -> str:
        """What tables and plots call the model, and the classifier if it isn't the model's own."""
        name = self.model.method or self.model.name
        if self.evaluation.classifier:
            return f"{name}, {self.evaluation.classifier}"
        return name

    @property
    def has_several_labels(self) -> bool:
        """Whether the scores are of images that can have several labels."""
        return any(score.map is not None for score in self.scores)

    @property
    def quality(self) -> str:
        """What tables call ``Score.quality``: "top-1" or "mAP"."""
        return quality_in_tables(self.has_several_labels)

    @property
    def quality_in_words(self) -> str:
        """What pictures call ``Score.quality``: "top-1 accuracy" or "mean average precision"."""
        return quality_in_words(self.has_several_labels)

    def of(self, *protocols: str, **variant: Any) -> list[Score]:
        """The scores of these protocols, one protocol after the other, whose variant has these values."""
        matching = []
        for protocol in protocols:
            matching += [score for score in self.scores if score.is_of(protocol, variant)]
        return matching

    def groups(self) -> dict[tuple[Any, ...], list[Score]]:
        """The scores that are samples of the same thing, by (protocol, then the values of the variant)."""
        grouped: dict[tuple[Any, ...], list[Score]] = {}
        for score in self.scores:
            grouped.setdefault((score.protocol, *score.variant.values()), []).append(score)
        return grouped

    def measure(self, kind: type[M]) -> M | None:
        """The measure of this kind, or None if it wasn't measured."""
        for measure in self.measures:
            if isinstance(measure, kind):
                return measure
        return None

    def save(self, path: str | Path) -> None:
        """Write as JSON, in which samples of the same thing are columns. The file is written whole or not at all.

        Raises:
            UserError: if it can't be written.
        """
        # The beginning of the file's JSON object, without the brace that closes it. The rest is put together by hand,
        # because json.dumps would write all scores on one line, or each number on a line by itself.
        about = {
            "layershuffle_results": FORMAT,
            "model": self.model.to_json(),
            "data": self.data.to_json(),
            "evaluation": self.evaluation.to_json(),
            "environment": self.environment.to_json(),
        }
        text = json.dumps(about, indent=1, allow_nan=False).removesuffix("\n}")
        # A file that lacked the key, as those of older versions do, keeps lacking it.
        if self.measures or "measures" not in self.lacks:
            measures = {measure.name: measure.to_json() for measure in self.measures}
            text += f',\n "measures": {json.dumps(measures, allow_nan=False)}'

        # A line for each group of scores, so that the file can be read, and compared line by line.
        lines = []
        for scores in self.groups().values():
            columns = ScoreColumns.of(scores, without=self.lacks)
            lines.append("\n  " + json.dumps(typed_json.write(columns), allow_nan=False))
        text += f',\n "scores": [{",".join(lines)}\n ]\n}}\n'
        write_whole(path, text)

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read a results file. Afterwards its types, its ranges and the shapes of its tables can be relied on.

        Raises:
            UserError: if it isn't there, is damaged, or is of another version.
        """
        content = read_json(path, what="a results file")
        version = content.get("layershuffle_results") if isinstance(content, dict) else None
        if version != FORMAT:
            raise UserError(f"{path} is not a results file of this version (format {shown(version)}, not {FORMAT})")
        try:
            return cls._from_json(content)
        except UserError as error:
            # The reason may hold any text of the file.
            reason = str(error)[:LONGEST_REASON]
            raise UserError(f"{path} is not a whole results file: {reason}") from error

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> "Results":
        """Read the content of a file of this version; errors don't name the file."""
        for part in PARTS:
            # Files of older versions have no measures.
            if part not in content and part != "measures":
                raise UserError(f"it has no {part}")
        for part in content:
            if part not in PARTS and part != "layershuffle_results":
                raise UserError(f"it has something unknown: {part}")
        scores, lacks = read_scores(content["scores"])
        if "measures" not in content:
            lacks |= {"measures"}
        results = cls(
            model=ModelInfo.from_json(content["model"]),
            data=DataInfo.from_json(content["data"]),
            evaluation=EvaluationInfo.from_json(content["evaluation"]),
            environment=Environment.from_json(content["environment"]),
            scores=scores,
            measures=_read_measures(content.get("measures", {})),
            lacks=lacks,
        )
        # A measure may refer to scores and to names of classes, so it is checked when all of them have been read.
        for measure in results.measures:
            measure.check(results)
        return results


def scores_of(results: Results, protocols: Collection[str] | None = None) -> Table:
    """A row for each score of these protocols, by default of all, with its quality in percent."""
    rows = []
    for score in results.scores:
        if protocols is None or score.protocol in protocols:
            variant = " ".join(f"{key}={value}" for key, value in score.variant.items())
            order = score.order or ""
            rows.append([score.protocol, variant, order, f"{100 * score.quality:.2f}"])
    return Table(["protocol", "variant", "order", f"{results.quality} %"], rows)


@dataclass(frozen=True)
class ReportSection:
    """A section of the report for what a measure says of all models together.

    Attributes:
        title: the heading.
        caption: of the section's picture.
        paper_figures: which figures of arXiv 2407.04513 it repeats, such as "4a and 4b".
        side_by_side: whether the section is just one picture of all models, which ``Measure.compared`` draws.
    """

    title: str
    caption: str = ""
    paper_figures: str = ""
    side_by_side: bool = False


class Measure:
    """Something that was measured beside the scores, and how it is shown.

    Its subclasses are dataclasses, registered with ``register``. What they hold is checked once, by ``check`` when a
    results file is read, and the other methods rely on it.

    Attributes:
        name: its key among the measures of a results file.
        picture: the name of its picture's file; empty if another measure's picture shows it.
        caption: of the picture.
        protocols: the protocols whose scores the picture shows, so that no other picture needs to.
        section: the report's section about it; without one, the report shows the picture of each model.
    """

    name: ClassVar[str]
    picture: ClassVar[str] = ""
    caption: ClassVar[str] = ""
    protocols: ClassVar[tuple[str, ...]] = ()
    section: ClassVar[ReportSection | None] = None

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read what a results file has under this measure's name; raises UserError if it can't be that."""
        return typed_json.read(cls, content, cls.name)

    def to_json(self) -> Any:
        """What a results file has under this measure's name."""
        return typed_json.write(self)

    def caption_for(self, results: "Results") -> str:
        """The caption of the picture of one model, which may depend on what was measured."""
        return self.caption

    def check(self, results: "Results") -> None:
        """Raise a UserError if the measure can't belong to these results."""

    def levels(self, results: "Results") -> dict[str, float]:
        """Accuracies in percent to compare with, by name, which pictures draw as level lines."""
        return {}

    def figure(self, results: "Results", title: str = "") -> Figure:
        """The picture of one model, which a measure with the name of a picture has."""
        raise NotImplementedError

    def tables(self, results: "Results") -> dict[str, Table]:
        """The tables to print, by name."""
        return {}

    def files(self, results: "Results") -> dict[str, Table]:
        """The tables to save beside the results file, by name."""
        return {}

    def data(self, results: "Results") -> tuple[str, Table]:
        """What the report shows below the picture: what the numbers are, and the numbers."""
        return f"{results.quality} in percent", scores_of(results)

    @classmethod
    def compared(cls, several: Sequence["Results"]) -> Figure:
        """The picture of several models side by side, for a section that is ``side_by_side``."""
        raise NotImplementedError

    @classmethod
    def compared_data(cls, several: Sequence["Results"]) -> tuple[str, Table]:
        """The numbers in the picture of several models: what they are, and a table of them."""
        raise NotImplementedError


MEASURES: dict[str, type[Measure]] = {}
"""Every kind of measure by its name in results files."""


def register(measure: type[M]) -> type[M]:
    """Make a kind of measure known, so that results files with it can be read; a decorator."""
    MEASURES[measure.name] = measure
    return measure


def _read_measures(content: Any) -> tuple[Measure, ...]:
    """Read what a results file has under "measures"; raises UserError if it can't be that."""
    measures = []
    for name, value in typed_json.read(dict[str, Any], content, "measures").items():
        if name not in MEASURES:
            raise UserError(f"there is no measure {name}")
        measures.append(MEASURES[name].from_json(value))
    return tuple(measures)
