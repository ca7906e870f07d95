"""Ranks the classes of an image by their probability, or names those that it shows where it can show several."""

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class LikelyClasses:
    """What an image shows. It is iterated and indexed like ``classes``.

    Attributes:
        classes: the likeliest classes, or all that it shows where it can show several; the likeliest first.
        disagreement: by how much the orders disagree: the mutual information between class and order, in nats
            (arXiv 1112.5745, equation 2). It is 0 if all orders have the same probabilities, and at most the logarithm
            of the number of classes. Where an image can show several classes, it is the sum of that of each class.
    """

    classes: tuple[LikelyClass, ...]
    disagreement: float

    def __iter__(self) -> Iterator[LikelyClass]:
        return iter(self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def __getitem__(self, index: int) -> LikelyClass:
        return self.classes[index]


def likely_classes(
    logits: Tensor, names: Sequence[str], top: int, thresholds: Sequence[float] | None = None
) -> LikelyClasses:
    """The likeliest classes of an image, or all that it shows where it can show several, and how far orders disagree.

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
        classes = _above(logits, names, logits.new_tensor(thresholds, dtype=torch.float32))
        return LikelyClasses(classes, _label_disagreement(logits))
    # Probabilities are averaged and not logits, whose size differs from order to order.
    orders, count = logits.shape
    probabilities = logits.softmax(dim=-1)
    mean = probabilities.mean(dim=0)
    # How often each class comes first: [classes], most of them 0.
    share_of_orders = probabilities.argmax(dim=-1).bincount(minlength=count) / orders
    likeliest = mean.argsort(descending=True)[:top].tolist()
    classes = _named(likeliest, names, mean, share_of_orders)
    return LikelyClasses(classes, _disagreement(logits))


def _above(logits: Tensor, names: Sequence[str], thresholds: Tensor) -> tuple[LikelyClass, ...]:
    """The classes whose mean probability reaches their threshold; logits: [orders, classes]."""
    probabilities = probabilities_of(logits)
    mean = probabilities.mean(dim=0)
    share_of_orders = (probabilities >= thresholds).float().mean(dim=0)
    is_shown = mean >= thresholds
    likeliest = mean.argsort(descending=True)
    shown = likeliest[is_shown[likeliest]].tolist()
    return _named(shown, names, mean, share_of_orders)


def _named(
    labels: Sequence[int], names: Sequence[str], mean: Tensor, share_of_orders: Tensor
) -> tuple[LikelyClass, ...]:
    """The classes with these labels, given the mean probability and the share of orders of all classes, [classes]."""
    return tuple(LikelyClass(names[label], float(mean[label]), float(share_of_orders[label])) for label in labels)


def _disagreement(logits: Tensor) -> float:
    """The entropy of the mean probabilities less the mean of the entropies, in nats; logits: [orders, classes]."""
    # On the CPU, because not every device has float64.
    probabilities = logits.cpu().double().softmax(dim=-1)
    entropy_of_mean = torch.special.entr(probabilities.mean(dim=0)).sum()
    entropies = torch.special.entr(probabilities).sum(dim=-1)  # [orders]
    # Rounding makes it a little less than 0 where all orders agree.
    return max(0.0, float(entropy_of_mean - entropies.mean()))


def _label_disagreement(logits: Tensor) -> float:
    """The same where an image can show several classes, each of which has a mutual information of its own."""
    probabilities = probabilities_of(logits).cpu().double()
    entropy_of_mean = _binary_entropy(probabilities.mean(dim=0))  # [classes]
    entropies = _binary_entropy(probabilities)  # [orders, classes]
    disagreements = entropy_of_mean - entropies.mean(dim=0)
    return max(0.0, float(disagreements.sum()))


def _binary_entropy(probabilities: Tensor) -> Tensor:
    """The entropy of yes and no, in nats, of each of the probabilities; of the same shape."""
    return torch.special.entr(probabilities) + torch.special.entr(1 - probabilities)
