"""Merged models: each layer from one of several models of the same backbone (arXiv 2407.04513v1)."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from layershuffle.checkpoints.record import RECORD, read_checkpoint
from layershuffle.errors import UserError
from layershuffle.files import sha256
from layershuffle.models.backbones import LAYER_ROWS, layer_of
from layershuffle.models.weights import BACKBONE_PREFIX
from layershuffle.orders.order import seeded

_POSITION = re.compile(r"model\.(?:encoding\.projections|prediction\.heads)\.(\d+)\.")


def _layer_of(name: str) -> int | None:
    """The layer that a weight of a checkpoint belongs to, or None if it isn't one layer's."""
    match = _POSITION.match(name)
    return int(match[1]) if match else layer_of(name.removeprefix(BACKBONE_PREFIX))


def merge(paths: Sequence[str | Path], seed: int) -> dict[str, Any]:
    """A checkpoint whose layers, with their position projections and heads, come at random from those at ``paths``.

    What is not a layer's own, such as the embedding, the classifier and the table of positions, is the first one's.

    Raises:
        UserError: (a ValueError) if there are fewer than two, or they aren't checkpoints of train.py of one model.
    """
    if len(paths) < 2:
        raise UserError("merging takes two or more checkpoints")
    contents = [read_checkpoint(path) for path in paths]
    first = contents[0]
    for path, content in zip(paths, contents):
        for key in ("model", "method"):
            if content[RECORD].get(key) != first[RECORD].get(key):
                raise UserError(f"{path} is of another {key} than {paths[0]}: only models alike can be merged")
    layers = {layer for layer in map(_layer_of, first["state_dict"]) if layer is not None}
    rng = seeded(seed, "merge")
    source = {layer: int(rng.random() * len(paths)) for layer in sorted(layers)}

    def weights(name: str) -> torch.Tensor:
        rows = LAYER_ROWS.get(name.removeprefix(BACKBONE_PREFIX))
        if rows is not None:
            each = [contents[source[layer]]["state_dict"][name].select(rows, layer) for layer in source]
            return torch.stack(each, rows)
        layer = _layer_of(name)
        return contents[0 if layer is None else source[layer]]["state_dict"][name]

    merged = {"sources": [{"source": str(p), "sha256": sha256(p)} for p in paths], "layers": list(source.values())}
    record = first[RECORD] | {
        "method": f"{first[RECORD]['method']}-merged",
        "seed": seed,
        "merged": merged,
        "wandb": None,
    }
    return {"state_dict": {name: weights(name) for name in first["state_dict"]}, RECORD: record}
