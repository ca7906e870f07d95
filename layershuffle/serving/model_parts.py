"""Parts of a model: what a node holds to run a step of the model's base order."""

import hashlib

import torch

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
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
