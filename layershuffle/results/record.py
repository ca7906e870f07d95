"""The record of an evaluation, with everything needed to repeat it; its JSON file; means over draws and seeds."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
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
        ece: expected calibration error, 0 to 1: by how much the probability of the predicted class is off, on average
            over 15 bins of it (arXiv 1706.04599). None in files of version 0.2 and before.
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
    ece: float | None = None

    def is_plausible(self) -> bool:
        """Whether all values have the right types and ranges."""
        parts = (self.top1, self.top5, self.position_accuracy, self.chosen, self.ece)
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
    """Number of values, mean, sample standard deviation (None for a single value), and extremes."""

    n: int
    mean: float
    std: float | None
    min: float
    max: float


def summarise(values: Iterable[float]) -> Summary:
    """Summarise at least one value."""
    values = list(values)
    std = statistics.stdev(values) if len(values) > 1 else None
    return Summary(len(values), statistics.fmean(values), std, min(values), max(values))


Variance = tuple[float, float]
"""The estimated variance of a mean, and the degrees of freedom of the estimate."""


@dataclass(frozen=True)
class Estimate:
    """A mean accuracy, and how uncertain it is, see ``estimate``.

    Attributes:
        mean: 0 to 1.
        variance: of the mean, or None where it is unknown.
        models: how many models, of different seeds, it is the mean of.
    """

    mean: float
    variance: Variance | None
    models: int

    @property
    def ci95(self) -> float | None:
        """The half-width of the 95% confidence interval of the mean, by Student's t."""
        return None if self.variance is None else half_width(self.variance)


def estimate(
    models: Iterable[Sequence[Score]], value: Callable[[Score], float | None] = lambda score: score.top1
) -> Estimate | None:
    """Estimate an accuracy from the scores of models of different seeds, which are draws of the same thing.

    The variance of the mean is the sum of up to three parts. Seeds: the variance between the models' means, over their
    number. Since models that are evaluated with seeds of their own run orders of their own, this includes the orders;
    orders that were new in every batch, which files don't list, are taken to be such.
    Orders: where all models ran the same orders, or there is just one model, the variance between the orders' means,
    over their number (a two-way layout with random effects). Images: that of a binomial share, because results files
    don't say which images were classified rightly. All models and orders share the images, so more of them don't make
    this part smaller. The sum is on the safe side, for chance differences between images also add to the other two
    parts. Its degrees of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946, page 110), and the share has two
    successes and two failures added (Agresti and Coull, The American Statistician 52, 1998, page 119), so that no share
    is certain.

    A single model has no variance between seeds; its interval is one for that model. If its images ran in different
    orders, one score doesn't tell how it varies with these, and the variance is None.

    Args:
        models: the scores of each model. Models that have none, or one without the value, are left out.
        value: the share to estimate.

    Returns:
        The estimate, or None if no model is left.
    """
    models = [scores for scores in models if scores and all(value(score) is not None for score in scores)]
    if not models:
        return None
    values = [[float(value(score) or 0) for score in scores] for scores in models]
    orders = [[score.order for score in scores] for scores in models]
    means = [statistics.fmean(row) for row in values]
    mean = statistics.fmean(means)
    if len(models) == 1 and None in orders[0]:
        return Estimate(mean, None, 1)
    images = min(score.images for scores in models for score in scores)
    share = (images * mean + 2) / (images + 4)
    parts = [(share * (1 - share) / (images + 4), math.inf)]
    if len(models) > 1:
        parts.append(_of_mean(means))
    if len(orders[0]) > 1 and all(own == orders[0] for own in orders):
        parts.append(_of_mean([statistics.fmean(column) for column in zip(*values)]))
    return Estimate(mean, total(parts), len(models))


def _of_mean(values: Sequence[float]) -> Variance:
    return statistics.variance(values) / len(values), len(values) - 1


def total(parts: Iterable[Variance]) -> Variance:
    """The sum of independent variances, with Satterthwaite's degrees of freedom; of two means' it is Welch's test."""
    parts = list(parts)
    variance = sum(part for part, _ in parts)
    spread = sum(part**2 / freedom for part, freedom in parts)
    return variance, variance**2 / spread if spread else math.inf


def half_width(variance: Variance) -> float:
    """The half-width of a 95% confidence interval."""
    return float(stdtrit(variance[1], 0.975)) * math.sqrt(variance[0])
