"""The mean of a value over the images of all validation batches and processes."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy


class ImageMean(Metric):
    """The mean of a value over images. torchmetrics' ``MeanMetric`` waits for the device three times an update.

    Attributes:
        total: the sum of the value over the images, float32 scalar.
        images: how many images there were, float32 scalar.
    """

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        # torchmetrics moves the states to the device, and adds them up over the processes before it computes the mean.
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, value: Tensor, images: int) -> None:
        """Add a batch, for which a value that isn't finite counts as infinite.

        Args:
            value: its mean over the batch's images, a scalar on the device.
            images: how many these are.
        """
        # NaN is neither better nor worse than another loss, so that such a model could be the best.
        self.total += value.nan_to_num(nan=math.inf, posinf=math.inf) * images
        self.images += images

    def compute(self) -> Tensor:
        """The mean; NaN without images."""
        return self.total / self.images


class ImageAccuracy(ImageMean):
    """The accuracy over all batches and processes."""

    def update(self, logits: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Add a batch; the arguments are those of ``accuracy``."""
        super().update(accuracy(logits, labels), len(labels))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of images whose most probable class is their label, a scalar.

    logits: [batch, classes]. labels: int64 [batch].
    """
    # Validating the arguments would wait for the device.
    return multiclass_accuracy(logits, labels, logits.shape[1], average="micro", validate_args=False)
