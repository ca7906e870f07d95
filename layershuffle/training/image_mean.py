"""The mean of a value over the images of all validation batches and processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


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
        """Add a batch.

        Args:
            value: its mean over the batch's images, a scalar on the device.
            images: how many these are.
        """
        self.total += value * images
        self.images += images

    def compute(self) -> Tensor:
        """The mean; NaN without images."""
        return self.total / self.images
