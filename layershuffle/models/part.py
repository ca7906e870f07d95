"""Copies of models without the layers that they will never run."""

import copy
from collections.abc import Collection

from torch import nn

from layershuffle.models.model import OrderedViT


def copy_with_layers(model: OrderedViT, layers: Collection[int], only_layers: bool = False) -> OrderedViT:
    """A copy of a model that can run some of its layers, and has no weights of the others.

    The modules for position prediction and for the choice of orders are left out, too.

    Args:
        model: the model.
        layers: the layers that the copy can run.
        only_layers: whether to leave out what comes before and after the layers as well.
    """
    left_out = [block for layer, block in enumerate(model.layers) if layer not in layers]
    if model.encoding:
        left_out += [module for layer, module in enumerate(model.encoding.projections) if layer not in layers]
    if only_layers:
        left_out += [module for module in model.vit.children() if module is not model.layers]

    # Before it copies a module, deepcopy looks in its memo, and takes what it finds there in place of a copy.
    memo: dict[int, nn.Module | None] = {id(module): nn.Identity() for module in left_out}
    # A model without position prediction, or without a choice of orders, has None in their place.
    for name, module in model.named_children():
        if name not in ("vit", "encoding"):
            memo[id(module)] = None
    return copy.deepcopy(model, memo)
