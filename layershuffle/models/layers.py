"""Which weights belong to which layer, by their names, and the weights of models with some of another's layers."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

LAYER_ROWS = {"rope.freqs": 1}
"""The parameters outside the blocks that hold something for the attention of each layer: their names in timm, and the
dimension along which the layers lie."""

# Matches the names of what belongs to one layer: timm's block, and the modules that an OrderedViT has for the layer's
# position.
_LAYER = re.compile(
    r"(?P<before>(?:model\.)?(?:(?:vit\.)?blocks|encoding\.(?:projections|tables)|prediction\.heads)\.)"
    r"(?P<layer>[0-9]{1,4})"
    r"(?P<after>\..*)"
)


def layer_of(name: str) -> int | None:
    """The layer that a weight belongs to, or None if it is outside the layers.

    ``name`` is its name in the state dict of timm's model, of an OrderedViT or of a checkpoint.
    """
    match = _LAYER.fullmatch(name)
    return int(match["layer"]) if match else None


def take_layers(weights: Mapping[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """The weights of a model whose layers are some of another model's; they may be left out, moved or repeated.

    Args:
        weights: the other model's, under the names that ``layer_of`` knows.
        layers: for each layer of the new model, which one of the other model it is.
    """
    taken: dict[str, Tensor] = {}
    for name, value in weights.items():
        match = _LAYER.fullmatch(name)
        rows = LAYER_ROWS.get(name.removeprefix("vit."))
        if match:
            # A layer that is repeated gives its weights to several new ones.
            for new_layer, old_layer in enumerate(layers):
                if old_layer == int(match["layer"]):
                    taken[f"{match['before']}{new_layer}{match['after']}"] = value
        elif rows is not None:
            taken[name] = value.index_select(rows, torch.tensor(layers, device=value.device))
        else:
            taken[name] = value
    return taken
