"""Results of an evaluation or a study, with everything needed to repeat it, and their JSON file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole
from layershuffle.results import typed_json
from layershuffle.results.provenance import DataInfo, Environment, EvaluationInfo, ModelInfo
from layershuffle.results.score import Score, ScoreColumns, read_scores

FORMAT = 2
PARTS = ("model", "data", "evaluation", "environment", "measures", "scores")


class Measure:
    """Something that was measured beside the scores. Its subclasses are dataclasses, registered with ``register``.

    Attributes:
        name: its key among the measures of a results file.
    """

    name: ClassVar[str]

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """Read what a results file has under this measure's name; raises UserError if it can't be that."""
        return typed_json.read(cls, content, cls.name)

    def to_json(self) -> Any:
        """What a results file has under this measure's name."""
        return typed_json.write(self)

    def check(self, results: "Results") -> None:
        """Raise a UserError if the measure can't belong to these results."""


MEASURES: dict[str, type[Measure]] = {}
"""Every kind of measure by its name in results files."""

M = TypeVar("M", bound=Measure)


def register(measure: type[M]) -> type[M]:
    """Make a kind of measure known, so that results files with it can be read; a decorator."""
    MEASURES[measure.name] = measure
    return measure


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
        lacks: the columns of the scores, and "measures", if the file lacks them because an older version wrote it.
    """

    model: ModelInfo
    data: DataInfo
    evaluation: EvaluationInfo
    environment: Environment
    scores: list[Score]
    measures: tuple[Measure, ...] = ()
    lacks: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        return self.model.method or self.model.name

    def of(self, *protocols: str, **variant: Any) -> list[Score]:
        """The scores of these protocols, one protocol after the other, whose variant has these values."""
        matching = []
        for protocol in protocols:
            for score in self.scores:
                if score.protocol == protocol and variant.items() <= score.variant.items():
                    matching.append(score)
        return matching

    def groups(self) -> dict[tuple[Any, ...], list[Score]]:
        """The scores that are draws of the same thing, by (protocol, then the values of the variant)."""
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
        """Write as JSON, in which draws of the same thing are columns. The file is written whole or not at all."""
        about = {
            "layershuffle_results": FORMAT,
            "model": self.model.to_json(),
            "data": self.data.to_json(),
            "evaluation": self.evaluation.to_json(),
            "environment": self.environment.to_json(),
        }
        text = json.dumps(about, indent=1, allow_nan=False).removesuffix("\n}")
        if self.measures or "measures" not in self.lacks:
            measures = {measure.name: measure.to_json() for measure in self.measures}
            text += f',\n "measures": {json.dumps(measures, allow_nan=False)}'

        # A line for each group of scores, so that the file can be read, and compared line by line.
        lines = []
        for scores in self.groups().values():
            columns = ScoreColumns.of(scores, without=self.lacks)
            lines.append("\n  " + json.dumps(typed_json.write(columns), allow_nan=False))
        write_whole(path, f'{text},\n "scores": [{",".join(lines)}\n ]\n}}\n')

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read a results file. Afterwards its types, its ranges and the shapes of its tables can be relied on.

        Raises:
            UserError: if it isn't there, is damaged, or is of another version.
        """
        content = read_json(path, what="a results file")
        version = content.get("layershuffle_results") if isinstance(content, dict) else None
        if version != FORMAT:
            raise UserError(f"{path} is not a results file of this version (format {version}, not {FORMAT})")
        try:
            return cls._from_json(content)
        except UserError as error:
            raise UserError(f"{path} is not a whole results file: {error}") from error

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> "Results":
        for part in PARTS:
            if part not in content and part != "measures":
                raise UserError(f"it has no {part}")
        for part in content:
            if part not in PARTS and part != "layershuffle_results":
                raise UserError(f"it has something unknown: {part}")
        scores, lacks = read_scores(content["scores"])
        if "measures" not in content:
            lacks |= {"measures"}
        results = cls(
            ModelInfo.from_json(content["model"]),
            DataInfo.from_json(content["data"]),
            EvaluationInfo.from_json(content["evaluation"]),
            Environment.from_json(content["environment"]),
            scores,
            _read_measures(content.get("measures", {})),
            lacks,
        )
        for measure in results.measures:
            measure.check(results)
        return results


def _read_measures(content: Any) -> tuple[Measure, ...]:
    measures = []
    for name, value in typed_json.read(dict[str, Any], content, "measures").items():
        if name not in MEASURES:
            raise UserError(f"there is no measure {name}")
        measures.append(MEASURES[name].from_json(value))
    return tuple(measures)
