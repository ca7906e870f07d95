"""How well probabilities tell which classes an image shows, where it can show several or none."""

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_precision_recall_curve, multilabel_average_precision
from torchmetrics.utilities.data import dim_zero_cat

NEUTRAL = 0.5
"""The threshold of a class of which no validation image tells a better one."""


def probabilities_of(logits: Tensor) -> Tensor:
    """The probability of each class, float32, from logits of the same shape; 0 where a logit is NaN."""
    return logits.float().sigmoid().nan_to_num(0.0)


def average_precisions(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The average precision of each class: float32 [classes], NaN for a class that no image shows.

    Args:
        probabilities: [images, classes].
        labels: uint8 [images, classes], 1 where the image shows the class.
    """
    precisions = probabilities.new_full((labels.shape[1],), torch.nan)
    shown = labels.bool().any(dim=0)
    classes = int(shown.sum())
    if classes:
        # torchmetrics would warn of the others, which the data set has named before.
        precisions[shown] = multilabel_average_precision(
            probabilities[:, shown], labels[:, shown].long(), classes, average="none", validate_args=False
        ).to(precisions)
    return precisions


def mean_average_precision(probabilities: Tensor, labels: Tensor) -> Tensor:
    """The mean over the classes that some image shows, a scalar; NaN if there are none. See ``average_precisions``."""
    return average_precisions(probabilities, labels).nanmean()


def best_thresholds(probabilities: Tensor, labels: Tensor) -> list[float]:
    """For each class the probability from which on naming it has the highest F1, see ``average_precisions``.

    F1 is the harmonic mean of precision and recall. A class that no image shows gets NEUTRAL.
    """
    thresholds = []
    for of_class, shown in zip(probabilities.unbind(dim=1), labels.unbind(dim=1)):
        if not shown.any():
            thresholds.append(NEUTRAL)
            continue
        precision, recall, candidates = binary_precision_recall_curve(of_class, shown.long(), validate_args=False)
        # The curve ends with a point at which nothing is named, which has no threshold.
        f1 = (2 * precision * recall / (precision + recall))[:-1].nan_to_num(0.0)
        thresholds.append(float(candidates[f1.argmax()]))
    return thresholds


def f1_of_classes(named: Tensor, labels: Tensor) -> Tensor:
    """The F1 of each class: float32 [classes], NaN for a class that no image shows and that is never named.

    Args:
        named: bool [images, classes], whether the class is named.
        labels: uint8 [images, classes], 1 where the image shows the class.
    """
    right = (named & labels.bool()).sum(dim=0)
    total = named.sum(dim=0) + labels.sum(dim=0)
    # 0 / 0 is NaN.
    return 2 * right / total


def macro_f1(named: Tensor, labels: Tensor) -> Tensor:
    """The mean F1 of the classes that some image shows or that are named, a scalar. See ``f1_of_classes``."""
    return f1_of_classes(named, labels).nanmean()


class AveragePrecision(Metric):
    """The mean average precision over all batches and processes. It keeps the probabilities of every image."""

    full_state_update = False
    probabilities: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("probabilities", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: logits [batch, classes], and labels, uint8 [batch, classes]."""
        self.probabilities.append(probabilities_of(logits))
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """The mean average precision; NaN if no image shows any class."""
        return mean_average_precision(dim_zero_cat(self.probabilities), dim_zero_cat(self.labels))

    def best_thresholds(self) -> list[float]:
        """The thresholds that suit the images of all processes, see the function of that name."""
        with self.sync_context():
            return best_thresholds(dim_zero_cat(self.probabilities), dim_zero_cat(self.labels))
