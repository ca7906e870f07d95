"""Merges models of the same backbone: each layer comes from one of them (arXiv 2407.04513v1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from layershuffle.checkpoints.loading import RECORD, read_checkpoint
from layershuffle.errors import UserError
from layershuffle.files import sha256
from layershuffle.models.backbones import LAYER_ROWS, layer_of
from layershuffle.models.weights import BACKBONE_PREFIX
from layershuffle.orders.order import seeded


def merge(paths: Sequence[str | Path], seed: int) -> dict[str, Any]:
    """Merge checkpoints: each layer, with its position projection and head, comes from one of them at random.

    The other weights, such as the embedding, the classifier and the table of positions, are those of the first one.
    Returns the content of the merged checkpoint.

    Raises:
        UserError: if there are fewer than two checkpoints, or they are of different models or methods.
    """
    if len(paths) < 2:
        raise UserError("merging takes two or more checkpoints")
    contents = [read_checkpoint(path) for path in paths]
    first = contents[0]
    for path, content in zip(paths, contents):
        for key in ("model", "method"):
            if content[RECORD].get(key) != first[RECORD].get(key):
                raise UserError(f"{path} is of another {key} than {paths[0]}, so the two can't be merged")
    layers = {layer for layer in map(layer_of, first["state_dict"]) if layer is not None}
    rng = seeded(seed, "merge")
    source = {layer: int(rng.random() * len(paths)) for layer in sorted(layers)}

    def weights(name: str) -> torch.Tensor:
        rows = LAYER_ROWS.get(name.removeprefix(BACKBONE_PREFIX))
        if rows is not None:
            each = [contents[source[layer]]["state_dict"][name].select(rows, layer) for layer in source]
            return torch.stack(each, rows)
        layer = layer_of(name)
        return contents[0 if layer is None else source[layer]]["state_dict"][name]

    merged = {"sources": [{"source": str(p), "sha256": sha256(p)} for p in paths], "layers": list(source.values())}
    method = f"{first[RECORD]['method']}-merged"
    record = first[RECORD] | {"method": method, "seed": seed, "merged": merged, "wandb": None}
    return {"state_dict": {name: weights(name) for name in first["state_dict"]}, RECORD: record}
