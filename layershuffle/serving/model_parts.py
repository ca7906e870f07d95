"""Parts of a model, of which a node holds one for each step that it can run, and the images that a model takes."""

import hashlib

import torch
from torch import Tensor

from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.models.part import copy_with_layers
from layershuffle.orders.order import Step


def part_for(model: OrderedViT, step: Step) -> OrderedViT:
    """A copy of the model that can run ``step`` and nothing else: it has no weights of other layers."""
    layers = {unit.layer for unit in step.units}
    return copy_with_layers(model, layers, only_layers=True).eval()


def fingerprint(model: OrderedViT) -> str:
    """The SHA-256 of the weights and their names, in hexadecimal."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        # The same bytes are other weights in another shape or type.
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


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
