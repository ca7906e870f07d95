"""How well an uncertainty tells wrong answers from right ones: what remains right if the least certain are left out."""

import math

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc


def error_auroc(uncertainty: Tensor, right: Tensor) -> float | None:
    """The probability that a wrong answer is less certain than a right one; ties count one half.

    It is the area under the receiver operating characteristic of finding errors (arXiv 1610.02136, section 2).

    Args:
        uncertainty: of each image, 0 to 1, the larger the less certain; floats [images].
        right: whether each image was classified rightly, bool [images].

    Returns:
        0.5 if the uncertainty says nothing, 1 if it tells all errors; None if all images are right or all are wrong.
    """
    if right.all() or not right.any():
        return None
    return float(binary_auroc(uncertainty, (~right).long()))


def selective_accuracy(uncertainty: Tensor, right: Tensor) -> Tensor:
    """The accuracy on the most certain image, on the two most certain ones, and so on up to all of them.

    Equally uncertain images count as if they came in random sequence.

    Args:
        uncertainty: see ``error_auroc``.
        right: see ``error_auroc``.

    Returns:
        float64 [images], 0 to 1.
    """
    # The images with the same uncertainty form a level; the most certain ones have level 0. In a random sequence, each
    # of them is expected to be as accurate as the level is on average.
    _, level = uncertainty.unique(return_inverse=True)  # int64 [images]
    accuracy_of_level = level.bincount(weights=right.double()) / level.bincount()
    expected = accuracy_of_level[level.sort().values]  # by image, the most certain first
    answered = torch.arange(1, len(right) + 1, device=right.device)
    return expected.cumsum(dim=0) / answered


def accuracy_at(coverage: float, accuracies: Tensor) -> float:
    """The accuracy on a share ``coverage`` of the images, which are the most certain ones.

    Args:
        coverage: above 0, up to 1.
        accuracies: what ``selective_accuracy`` returned.
    """
    # Without rounding, 0.07 of 100 images would be 7.000000000000001 and count as 8.
    answered = math.ceil(round(coverage * len(accuracies), 6))
    return float(accuracies[answered - 1])


def area_under_risk_coverage(accuracies: Tensor) -> float:
    """The share of errors, averaged over all numbers of images to answer; the lower, the better.

    Args:
        accuracies: what ``selective_accuracy`` returned.
    """
    return float(1 - accuracies.mean())
