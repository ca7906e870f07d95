"""Ranks the classes of an image by their probability."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from layershuffle.errors import UserError


@dataclass(frozen=True)
class LikelyClass:
    """One of the likeliest classes of an image.

    Attributes:
        name: the name of the class, or its number if the model doesn't know the names.
        probability: from 0 to 1, the mean over the orders.
        first: the share of the orders, from 0 to 1, in which it was the likeliest class.
    """

    name: str
    probability: float
    first: float


def likely_classes(logits: Tensor, names: Sequence[str], top: int) -> tuple[LikelyClass, ...]:
    """The likeliest classes of an image, the likeliest first.

    Args:
        logits: the image's logits in each of one or more orders, [orders, classes].
        names: of the classes.
        top: how many classes to return, if there are as many.

    Raises:
        UserError: if some logits are not numbers, for which no class is likelier than another.
    """
    if bool(logits.isnan().any()):
        raise UserError("the model's logits are not numbers (NaN), so that no class is the likeliest")
    # Probabilities are averaged and not logits, whose size differs from order to order.
    orders, classes = logits.shape
    probabilities = logits.softmax(dim=-1)
    mean = probabilities.mean(dim=0)
    first = probabilities.argmax(dim=-1).bincount(minlength=classes) / orders
    likeliest = mean.argsort(descending=True)[:top].tolist()
    return tuple(LikelyClass(names[label], float(mean[label]), float(first[label])) for label in likeliest)
