"""Resizes, centre crops and normalises uint8 images on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F

from layershuffle.errors import UserError


class Preprocess(nn.Module):
    """The paper's preprocessing (arXiv 2407.04513, section 4) of a batch, on the device of the batch.

    Resize the shorter side to ``size`` (bilinear, antialiased), crop the centre, scale to 0..1, normalise by the
    backbone's own mean and standard deviation. Grey images are repeated over the backbone's channels.

    Args:
        size: height and width of the result, in pixels.
        mean: per channel, in units of 0..1.
        std: per channel, in units of 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: uint8 [batch, channels, height, width]. Returns float32 [batch, channels, size, size]."""
        if images.shape[1] not in (1, len(self.mean)):
            raise UserError(
                f"the images have {images.shape[1]} channels, but the model takes {len(self.mean)}: train one with "
                f"--model.timm_args.in_chans {images.shape[1]}"
            )
        if not len(images):  # which can't be resized
            images = images.new_empty((0, images.shape[1], self.size, self.size))
        if images.shape[-2:] != (self.size, self.size):
            images = F.center_crop(F.resize(images, [self.size], antialias=True), [self.size, self.size])
        return (images.float() / 255 - self.mean) / self.std
