"""Ranks the classes of an image by their probability, or names those that it shows where it can show several."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layershuffle.data.label_scores import probabilities_of
from layershuffle.errors import UserError


@dataclass(frozen=True)
class LikelyClass:
    """One of the likeliest classes of an image, or one of several that it shows.

    Attributes:
        name: the name of the class, or its number if the model doesn't know the names.
        probability: from 0 to 1, the mean over the orders.
        first: the share of the orders, from 0 to 1, in which it was the likeliest class; where an image can show
            several, in which its probability reached the class's threshold.
    """

    name: str
    probability: float
    first: float


def likely_classes(
    logits: Tensor, names: Sequence[str], top: int, thresholds: Sequence[float] | None = None
) -> tuple[LikelyClass, ...]:
    """The likeliest classes of an image, or all that it shows where it can show several; the likeliest first.

    Args:
        logits: the image's logits in each of one or more orders, [orders, classes].
        names: of the classes.
        top: how many classes to return, if there are as many and an image shows one.
        thresholds: where an image can show several, the mean probability from which on each class is returned.

    Raises:
        UserError: if some logits are not numbers, for which no class is likelier than another.
    """
    if bool(logits.isnan().any()):
        raise UserError("the model's logits are not numbers (NaN), so that no class is the likeliest")
    if thresholds is not None:
        return _above(logits, names, logits.new_tensor(thresholds, dtype=torch.float32))
    # Probabilities are averaged and not logits, whose size differs from order to order.
    orders, classes = logits.shape
    probabilities = logits.softmax(dim=-1)
    mean = probabilities.mean(dim=0)
    first = probabilities.argmax(dim=-1).bincount(minlength=classes) / orders
    likeliest = mean.argsort(descending=True)[:top].tolist()
    return tuple(LikelyClass(names[label], float(mean[label]), float(first[label])) for label in likeliest)


def _above(logits: Tensor, names: Sequence[str], thresholds: Tensor) -> tuple[LikelyClass, ...]:
    """The classes whose mean probability reaches their threshold; logits: [orders, classes]."""
    probabilities = probabilities_of(logits)
    mean = probabilities.mean(dim=0)
    share_of_orders = (probabilities >= thresholds).float().mean(dim=0)
    likeliest = mean.argsort(descending=True)
    shown = likeliest[(mean >= thresholds)[likeliest]].tolist()
    return tuple(LikelyClass(names[label], float(mean[label]), float(share_of_orders[label])) for label in shown)
