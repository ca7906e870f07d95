"""How one order did on a data set, and the form that many such scores have in a results file."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from layershuffle import typed_json
from layershuffle.errors import UserError
from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.plurals import counted

Variant = dict[str, str | int | float | bool]
"""What distinguishes orders of the same protocol, such as {"kept": 6, "strategy": "first"}."""


@dataclass(frozen=True)
class Score:
    """How one order did on a data set.

    Attributes:
        protocol: the family of orders it belongs to, such as "pruned".
        variant: distinguishes it from others of the family, such as {"kept": 6, "strategy": "first"}.
        order: its text form, or None where it differed: a new one for every batch, or one for each image.
        images: how many images were classified.
        top1: accuracy, 0 to 1. None where images can have several labels, as the next and ``ece``.
        top5: accuracy of the five likeliest classes, 0 to 1.
        loss: mean cross-entropy, in nats, or None where it isn't finite. With several labels it is binary, and also the
            mean over the classes.
        position_accuracy: the share of positions that the layers predicted rightly, 0 to 1, or None without prediction.
        chosen: the share of images that chose this order, 0 to 1, or None where they had no choice.
        nan: how many images had logits that are not numbers (NaN). They count as classified wrongly.
        ece: expected calibration error, 0 to 1: by how much the probability of the predicted class is off, on average
            over 15 bins of it (arXiv 1706.04599). None in files of version 0.2 and before.
        map: where images can have several labels, the mean average precision, 0 to 1: the mean over the classes that
            images show. None where each has one label, as the next.
        f1: the mean over the classes of F1, 0 to 1, when each is named from the model's threshold on.
    """

    protocol: str
    variant: dict[str, Any]
    order: str | None
    images: int
    top1: float | None
    top5: float | None
    loss: float | None
    position_accuracy: float | None
    chosen: float | None = None
    nan: int = 0
    ece: float | None = None
    map: float | None = None
    f1: float | None = None

    @property
    def quality(self) -> float:
        """What tables and figures show of it, 0 to 1: the accuracy, or with several labels mean average precision."""
        quality = self.top1 if self.map is None else self.map
        assert quality is not None
        return quality

    def is_of(self, protocol: str, variant: Mapping[str, Any]) -> bool:
        """Whether it is of that protocol, and its variant has these values among others."""
        return self.protocol == protocol and variant.items() <= self.variant.items()


@dataclass(frozen=True, kw_only=True)
class ScoreColumns:
    """Scores of the same protocol and variant as a results file has them: a column for each attribute of Score.

    Protocol and variant stand there once, not once for each of thousands of orders. Files lack the columns of scores
    that have other labels, and those of older versions lack NEWER_COLUMNS.
    """

    protocol: str
    variant: Variant
    order: list[str | None]
    images: list[int]
    top1: list[float] | None = None
    top5: list[float] | None = None
    loss: list[float | None]
    position_accuracy: list[float | None]
    chosen: list[float | None] | None = None
    nan: list[int] | None = None
    ece: list[float | None] | None = None
    map: list[float] | None = None
    f1: list[float] | None = None

    @classmethod
    def of(cls, scores: Sequence[Score], without: Iterable[str]) -> "ScoreColumns":
        """The columns of scores that share protocol and variant, but for the columns ``without``."""
        of_other_labels = SEVERAL_LABELS if scores[0].map is None else ONE_LABEL
        columns: dict[str, Any] = {}
        for column in COLUMNS:
            if column not in without and column not in of_other_labels:
                columns[column] = [getattr(score, column) for score in scores]
        return cls(protocol=scores[0].protocol, variant=scores[0].variant, **columns)

    def scores(self) -> list[Score]:
        """A Score for each row.

        Raises:
            UserError: if the columns are neither those of one label nor those of several, if they differ in length, if
                a value is out of range, or if the variant lacks what the protocol's table needs.
        """
        has_accuracy = self.top1 is not None
        has_map = self.map is not None
        if has_accuracy == has_map or (self.top5 is not None) != has_accuracy:
            raise UserError(f"{self.protocol} has neither top1 and top5 nor map, or both")

        # Score has no defaults for these two, so that it needs a value even if the file lacks their columns.
        columns: dict[str, Sequence[Any]] = {"top1": [None] * len(self.order), "top5": [None] * len(self.order)}
        for column in COLUMNS:
            values = getattr(self, column)
            if values is None:
                continue
            if len(values) != len(self.order):
                orders = counted(len(self.order), "order")
                raise UserError(f"{column} has {counted(len(values), 'value')} for {orders} of {self.protocol}")
            columns[column] = values

        # From columns to rows: each row has the values of one score, in the sequence of the columns' names.
        scores = []
        for row in zip(*columns.values()):
            named = dict(zip(columns, row))
            score = Score(self.protocol, self.variant, **named)
            _check(score)
            scores.append(score)
        return scores


COLUMNS = tuple(field.name for field in fields(Score) if field.name not in ("protocol", "variant"))
ONE_LABEL = ("top1", "top5", "ece")
"""Columns of scores on images that have one label each."""
SEVERAL_LABELS = ("map", "f1")
"""Columns of scores on images that can have several labels."""
NEWER_COLUMNS = ("chosen", "nan", "ece")
"""Columns that files of older versions lack."""


def quality_in_tables(several_labels: bool) -> str:
    """What tables call ``Score.quality`` of images with one label, or with several."""
    return "mAP" if several_labels else "top-1"


def quality_in_words(several_labels: bool) -> str:
    """What pictures call ``Score.quality`` of images with one label, or with several."""
    return "mean average precision" if several_labels else "top-1 accuracy"


def read_scores(groups: Any) -> tuple[list[Score], frozenset[str]]:
    """Read what a results file has under "scores".

    Returns:
        The scores, and the names of the columns that the file lacks because an older version wrote it.

    Raises:
        UserError: if something in it has the wrong type or is out of range.
    """
    scores = []
    # What one group lacks, the whole file lacks: one version has written all of it.
    lacking: set[str] = set()
    for group in typed_json.read(list[ScoreColumns], groups, "scores"):
        scores += group.scores()
        for column in NEWER_COLUMNS:
            if getattr(group, column) is None:
                lacking.add(column)
    return scores, frozenset(lacking)


def _check(score: Score) -> None:
    """Raise a UserError if a count, a share or the variant of a score that was read can't be one."""
    # In a table with columns, the first entry of the variant says in which column the score stands.
    protocol = PROTOCOLS.get(score.protocol)
    if protocol is not None and protocol.columns and not score.variant:
        raise UserError(f"a score of {score.protocol} has an empty variant, without the {protocol.columns}")
    if not 0 <= score.nan <= score.images:
        raise UserError(f"of {counted(score.images, 'image')} of {score.protocol}, {score.nan} can't be NaN")
    for share in (score.top1, score.top5, score.position_accuracy, score.chosen, score.ece, score.map, score.f1):
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"{share} is no share of images of {score.protocol}")
