"""Means over orders and seeds, and how uncertain they are."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from layershuffle.results.score import Score


@dataclass(frozen=True)
class Summary:
    """A summary of some values, in the unit of these.

    Attributes:
        n: how many values there are.
        mean: their mean.
        std: their sample standard deviation, or None for a single value.
        min: the smallest one.
        max: the largest one.
    """

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
    models: Iterable[Sequence[Score]], value: Callable[[Score], float | None] = lambda score: score.quality
) -> Estimate | None:
    """Estimate an accuracy from the scores of models of different seeds, which are samples of the same thing.

    The variance of the mean is the sum of up to three parts:

    - Images: the variance of a binomial share, because results files don't say which images were classified rightly.
      All models and orders share the images, so that more models don't make this part smaller. Two successes and two
      failures are added (Agresti and Coull, The American Statistician 52, 1998, page 119), so that no share is certain.
    - Seeds: the variance between the models' means, divided by their number. If each model ran other orders, this
      contains the variance between orders too. Orders that were new in every batch count as other orders, because
      results files don't list them.
    - Orders: if all models ran the same orders, or there is only one model, the variance between the orders' means,
      divided by their number (a two-way layout with random effects).

    The sum is on the safe side, because chance differences between images also add to the other two parts. Its degrees
    of freedom are Satterthwaite's (Biometrics Bulletin 2, 1946, page 110).

    A single model has no variance between seeds; its interval is one for that model. If every batch ran in a new order,
    the one score that there is doesn't tell how it varies with the orders, and the variance is None.

    Args:
        models: the scores of each model. Models that have none, or one without the value, are left out.
        value: the share to estimate.

    Returns:
        The estimate, or None if no model is left.
    """
    # A row for each model: the shares, the orders that they belong to, and the images.
    shares: list[list[float]] = []
    orders: list[list[str | None]] = []
    images: list[int] = []
    has_map = False
    for scores in models:
        # A mean over some of the orders would be a mean of something else, so a model without a share doesn't count.
        known = []
        for score in scores:
            share = value(score)
            if share is not None:
                known.append(share)
        if scores and len(known) == len(scores):
            shares.append(known)
            orders.append([score.order for score in scores])
            images += [score.images for score in scores]
            has_map = has_map or scores[0].map is not None
    if not shares:
        return None
    # Mean average precision is no share of images, so that its variance over images is unknown.
    is_share = not has_map

    # Every model has the same weight, however many orders it ran.
    means = [statistics.fmean(row) for row in shares]
    mean = statistics.fmean(means)
    # A score without an order is of orders that differed from batch to batch or from image to image. How it varies with
    # them, a single model doesn't tell.
    if len(means) == 1 and None in orders[0]:
        return Estimate(mean, None, 1)

    # The parts in the docstring. The fewest images give the largest variance.
    parts = []
    if is_share:
        parts.append(_of_share(mean, min(images)))
    if len(means) > 1:
        parts.append(_of_mean(means))
    # Where models ran different orders, the variance between their means contains that between orders.
    same_orders = all(row == orders[0] for row in orders)
    if same_orders and len(orders[0]) > 1:
        parts.append(_of_mean([statistics.fmean(column) for column in zip(*shares)]))
    return Estimate(mean, total(parts) if parts else None, len(means))


def of_images(share: float, images: int) -> Estimate:
    """The estimate of a share of so many images, of one model in one order."""
    return Estimate(share, _of_share(share, images), 1)


def _of_share(mean: float, images: int) -> Variance:
    """The variance of a share over images. Two successes and two failures are added, so that no share is certain."""
    share = (images * mean + 2) / (images + 4)
    # With infinite degrees of freedom Student's t is the normal distribution, which Agresti and Coull's interval uses.
    return share * (1 - share) / (images + 4), math.inf


def _of_mean(values: Sequence[float]) -> Variance:
    """The variance of the mean of two or more independent values."""
    return statistics.variance(values) / len(values), len(values) - 1


def total(parts: Iterable[Variance]) -> Variance:
    """The sum of independent variances, with Satterthwaite's degrees of freedom; of two means' it is Welch's test."""
    # Satterthwaite: the square of the sum over the sum of the parts' squares, each over its own degrees of freedom.
    variance = 0.0
    spread = 0.0
    for part, part_freedom in parts:
        variance += part
        spread += part**2 / part_freedom
    # Without spread the parts are known for certain, and the sum is too.
    freedom = variance**2 / spread if spread else math.inf
    return variance, freedom


def half_width(variance: Variance) -> float:
    """The half-width of the 95% confidence interval of a mean with this variance."""
    value, freedom = variance
    # The quantile of Student's t that leaves 2.5% above it, and by symmetry as much below.
    return float(stdtrit(freedom, 0.975)) * math.sqrt(value)
