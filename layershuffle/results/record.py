"""The record of an evaluation, with everything needed to repeat it; its JSON file; means over draws and seeds."""

import json
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole

FORMAT = 2


@dataclass(frozen=True)
class Score:
    """How one order did on a data set.

    Attributes:
        protocol: the family of orders it belongs to, such as "pruned".
        variant: distinguishes it from others of the family, such as {"kept": 6, "strategy": "first"}.
        order: its text form, or None where it differed: a new one for every batch, or one for each image.
        images: how many images were classified.
        top1: accuracy, 0 to 1.
        top5: accuracy of the five likeliest classes, 0 to 1.
        loss: mean cross-entropy, in nats, or None where it isn't finite.
        position_accuracy: the share of positions that the layers predicted rightly, 0 to 1, or None without prediction.
        chosen: the share of images that chose this order, 0 to 1, or None where they had no choice.
        nan: how many images had logits that are not numbers (NaN). They count as classified wrongly.
    """

    protocol: str
    variant: dict[str, Any]
    order: str | None
    images: int
    top1: float
    top5: float
    loss: float | None
    position_accuracy: float | None
    chosen: float | None = None
    nan: int = 0

    def is_plausible(self) -> bool:
        """Whether all values have the right types and ranges."""
        parts = (self.top1, self.top5, self.position_accuracy, self.chosen)
        return (
            isinstance(self.protocol, str)
            and isinstance(self.variant, dict)
            and all(isinstance(value, (str, int, float, bool)) for value in self.variant.values())
            and isinstance(self.order, str | None)
            and type(self.images) is type(self.nan) is int
            and 0 <= self.nan <= self.images
            and all(part is None or (isinstance(part, (int, float)) and 0 <= part <= 1) for part in parts)
            and None not in (self.top1, self.top5)
            and (self.loss is None or (isinstance(self.loss, (int, float)) and math.isfinite(self.loss)))
        )


@dataclass(frozen=True)
class Results:
    """An evaluation.

    Attributes:
        model: its name, method, checkpoint and the checkpoint's sha256, and the config that makes it again.
        data: the data set and its arguments.
        evaluation: the protocols, their settings and the seed.
        environment: versions, device, precision and time.
        scores: one per order.
        measures: other measurements by name, such as the "cosine" similarities of the layers' activations.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    evaluation: dict[str, Any]
    environment: dict[str, Any]
    scores: list[Score]
    measures: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        return self.model.get("method") or self.model["name"]

    def of(self, *protocols: str, **variant: Any) -> list[Score]:
        """The scores of these protocols, one protocol after the other, whose variant has these values."""
        return [
            s for name in protocols for s in self.scores if s.protocol == name and variant.items() <= s.variant.items()
        ]

    def groups(self) -> dict[tuple[Any, ...], list[Score]]:
        """The scores that are draws of the same thing, by (protocol, then the values of the variant)."""
        grouped: dict[tuple[Any, ...], list[Score]] = {}
        for score in self.scores:
            grouped.setdefault((score.protocol, *score.variant.values()), []).append(score)
        return grouped

    def save(self, path: str | Path) -> None:
        """Write as JSON, in which draws of the same thing are columns. The file is written whole or not at all."""
        columns = [name for name in Score.__dataclass_fields__ if name not in ("protocol", "variant")]
        groups = [
            {"protocol": scores[0].protocol, "variant": scores[0].variant}
            | {name: [getattr(score, name) for score in scores] for name in columns}
            for scores in self.groups().values()
        ]
        head = {name: part for name, part in vars(self).items() if name not in ("scores", "measures")}
        text = json.dumps({"layershuffle_results": FORMAT, **head}, indent=1, allow_nan=False).removesuffix("\n}")
        rows = ",".join("\n  " + json.dumps(group, allow_nan=False) for group in groups)
        measures = json.dumps(self.measures, allow_nan=False)
        write_whole(path, f'{text},\n "measures": {measures},\n "scores": [{rows}\n ]\n}}\n')

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read a results file; raises UserError if it isn't there, is damaged, or is of another version."""
        content = read_json(path, what="a results file")
        version = content.pop("layershuffle_results", None) if isinstance(content, dict) else None
        if version != FORMAT:
            raise UserError(f"{path} is not a results file of this version (format {version}, not {FORMAT})")
        try:
            scores = []
            for group in content.pop("scores"):
                shared = {"protocol": group.pop("protocol"), "variant": group.pop("variant")}
                scores += [Score(**shared, **dict(zip(group, row))) for row in zip(*group.values(), strict=True)]
            found = cls(**content, scores=scores)
            if any(not isinstance(part, dict) for part in vars(found).values() if part is not scores):
                raise TypeError("a part of it is no object")
            if wrong := [score for score in scores if not score.is_plausible()]:
                raise ValueError(f"{wrong[0]} can't be")
            str(found.label), found.data["name"], found.data["images"]
            return found
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{path} is not a whole results file: {error}") from error


@dataclass(frozen=True)
class Summary:
    """Mean, sample standard deviation, extremes, half-width of the mean's 95% confidence interval (by Student's t).

    ``std`` and ``ci95`` are None for a single value.
    """

    n: int
    mean: float
    std: float | None
    min: float
    max: float
    ci95: float | None


def summarise(values: Iterable[float]) -> Summary:
    """Summarise at least one value."""
    values = list(values)
    n, mean = len(values), statistics.fmean(values)
    std = statistics.stdev(values) if n > 1 else None
    ci95 = None if std is None else float(stdtrit(n - 1, 0.975)) * std / math.sqrt(n)
    return Summary(n, mean, std, min(values), max(values), ci95)
