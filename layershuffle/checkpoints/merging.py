"""Merges models of the same backbone: each layer comes from one of them (arXiv 2407.04513v1)."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from layershuffle.checkpoints.loading import read_checkpoint
from layershuffle.checkpoints.metadata import METADATA_KEY, CheckpointMetadata
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
    several = [CheckpointMetadata.from_content(content, path) for content, path in zip(contents, paths)]
    first = contents[0]
    for path, metadata in zip(paths, several):
        for key in ("model", "method"):
            if getattr(metadata, key) != getattr(several[0], key):
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
    metadata = replace(several[0], method=f"{several[0].method}-merged", seed=seed, merged=merged, wandb=None)
    return {"state_dict": {name: weights(name) for name in first["state_dict"]}, METADATA_KEY: metadata.to_dict()}
