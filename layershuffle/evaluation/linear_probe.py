"""Linear classifiers of the features of a frozen model: logistic regression."""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layershuffle.evaluation.by_class import balanced_accuracy
from layershuffle.evaluation.features import Features

PENALTIES = tuple(10.0**power for power in range(1, -7, -1))
"""The weights of the L2 penalty to choose from, the strongest first."""
MAX_ITERATIONS = 300
"""Iterations of L-BFGS for each penalty. Features are standardised, so that it converges earlier."""


@dataclass(frozen=True)
class Standardisation:
    """Brings each feature to mean 0 and standard deviation 1 on the training images.

    Attributes:
        mean: float32 [dim].
        std: float32 [dim], 1 for a feature that is constant.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Standardisation":
        """The standardisation that suits these features, [images, dim]."""
        # A constant feature has a standard deviation of 0, and dividing by it would give NaN.
        std = features.std(dim=0, correction=0)
        return cls(features.mean(dim=0), std.where(std > 0, 1.0))

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.mean) / self.std

    @torch.no_grad()
    def folded_into(self, linear: nn.Linear) -> nn.Linear:
        """A classifier of the features as they are, with the logits that ``linear`` has of the standardised ones."""
        folded = deepcopy(linear)
        folded.weight.copy_(linear.weight / self.std)
        folded.bias.copy_(linear.bias - folded.weight @ self.mean)
        return folded


def logistic_regressions(train: Features, classes: int, penalties: Sequence[float] = PENALTIES) -> Iterator[nn.Linear]:
    """Fit a linear classifier with each of ``penalties``, by L-BFGS over all images at once.

    It minimises the mean cross-entropy plus half of the penalty times the squared norm of the weights, without the
    bias. That is scikit-learn's ``LogisticRegression`` with ``C = 1 / (penalty * images)``. Each fit starts from the
    one before it, and it is one module that is trained further and yielded again.

    Args:
        train: with standardised features.
        classes: how many there are.
        penalties: the weights of the L2 penalty, the strongest first.
    """
    linear = nn.Linear(train.features.shape[1], classes, device=train.features.device)
    # The problem is convex, so that every start leads to the same result. Zeros need no seed.
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    for penalty in penalties:
        # Each penalty gets a new optimizer, because the curvature that L-BFGS has gathered is that of another loss.
        optimizer = torch.optim.LBFGS(
            linear.parameters(), max_iter=MAX_ITERATIONS, tolerance_grad=1e-6, line_search_fn="strong_wolfe"
        )

        def loss(penalty: float = penalty, optimizer: torch.optim.Optimizer = optimizer) -> float:
            """The loss, after a backward pass; L-BFGS calls this several times in a step."""
            optimizer.zero_grad()
            cross_entropy = F.cross_entropy(linear(train.features), train.labels)
            total = cross_entropy + penalty / 2 * linear.weight.square().sum()
            total.backward()
            return total.item()

        optimizer.step(loss)
        yield linear


def balanced(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """The mean of the accuracies of the classes that have images, 0 to 1; predicted and labels: int64 [images]."""
    matrix = (labels * classes + predicted).bincount(minlength=classes * classes).view(classes, classes)
    return balanced_accuracy(matrix)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """The share of the images, 0 to 1, whose predicted class is their label."""
    return float((predicted == labels).double().mean())
