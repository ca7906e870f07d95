"""scikit-learn's handwritten digits: real images that need no download."""

from functools import cache
from typing import Any

import torch

from layershuffle.data.module import ImageData
from layershuffle.data.sets import TensorImages, split_images
from layershuffle.errors import UserError


class Digits(ImageData):
    """1,797 grey images of 8 x 8 pixels in 10 classes. A fixed random fifth of them (359) is the test set.

    Args:
        batch_size: images per training step and process.
        stratified: see ``ImageData``. By default not, as in the published results.
        kwargs: further arguments of ``ImageData``.
    """

    num_classes = 10

    @property
    def has_handed_classes(self) -> bool:
        return True

    @property
    def class_names(self) -> list[str]:
        return list("0123456789")

    def __init__(self, batch_size: int = 64, stratified: bool = False, **kwargs: Any) -> None:
        super().__init__(batch_size=batch_size, stratified=stratified, **kwargs)

    def load(self, train: bool) -> TensorImages:
        """The training or test images, which are the same for every seed."""
        everything = _read()
        test, rest = split_images(everything, len(everything) // 5, seed=0)
        part = rest if train else test
        return TensorImages(*everything.__getitems__(list(part.indices)))


@cache
def _read() -> TensorImages:
    """All images. They are in a file of text, which takes longer to read than a small model takes to train a step."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("the digits need scikit-learn: pip install 'layershuffle[digits]'") from error
    digits = load_digits()
    pixels = torch.from_numpy(digits.images * (255 / 16))  # scikit-learn's white is 16
    images = pixels.round().to(torch.uint8).unsqueeze(1)
    return TensorImages(images, torch.from_numpy(digits.target))
