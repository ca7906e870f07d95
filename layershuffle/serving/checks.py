"""Checks what comes into serving: the numbers of policies, scenarios and clusters, and images."""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from layershuffle.checkpoints.plain_values import shown
from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT

MOST = 1e9
"""What no number of seconds, nodes or requests is above."""


def check_numbers(values: Mapping[str, Any], *, whole: Collection[str] = (), positive: Collection[str] = ()) -> None:
    """Raise a UserError unless all values are numbers from 0 to ``MOST``.

    Args:
        values: the numbers by their names, which are those of options. None stands for an option that isn't given.
        whole: the names of those that are whole numbers.
        positive: the names of those that are above 0.
    """
    for name, value in values.items():
        if value is None:
            continue
        kind = int if name in whole else (int, float)
        # Written like this, so that NaN is refused, too.
        can_be = isinstance(value, kind) and not isinstance(value, bool) and 0 <= value <= MOST
        if not can_be or (name in positive and not value):
            words = "a whole number" if name in whole else "a number"
            least = "above 0" if name in positive else "from 0 up"
            raise UserError(f"{name} can't be {shown(value)}: give {words} {least}, at most {MOST:,.0f}")


def check_images(images: Tensor, model: OrderedViT) -> None:
    """Raise a UserError if a model on the CPU can't take the images; no node should have to find that out.

    Args:
        images: what must be [1 or more, channels, height, width], finite, and of the type of the model's weights.
        model: the model.
    """
    shape = f"[1 or more, {', '.join(map(str, model.image_shape))}]"
    if not isinstance(images, Tensor):
        raise UserError(f"the images are a {type(images).__name__}, but the model takes a tensor {shape}")
    if images.ndim != 4 or tuple(images.shape[1:]) != model.image_shape or not len(images):
        raise UserError(f"the images are {list(images.shape)}, but the model takes {shape}")
    dtype = next(model.parameters()).dtype
    if images.dtype != dtype or images.device.type != "cpu":
        raise UserError(f"the images are {images.dtype} on {images.device}, but the model takes {dtype} on the CPU")
    if not bool(images.isfinite().all()):
        raise UserError("the images hold values that are no finite numbers: take what the model's preprocess returns")
