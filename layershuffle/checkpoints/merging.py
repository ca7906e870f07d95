"""Merges models of the same backbone: each layer comes from one of them (arXiv 2407.04513v1)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from layershuffle.checkpoints.checkpoint import Checkpoint, read_checkpoint
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.checkpoints.training_data import class_names, match_classes
from layershuffle.errors import UserError
from layershuffle.files import sha256
from layershuffle.models.layers import LAYER_ROWS, layer_of
from layershuffle.models.weights import BACKBONE_PREFIX
from layershuffle.orders.order import seeded


def merge(paths: Sequence[str | Path], seed: int) -> dict[str, Any]:
    """Merge checkpoints: each layer, with its position projection and head, comes from one of them at random.

    The other weights, such as the embedding, the classifier and the table of positions, are those of the first one.

    Args:
        paths: of the checkpoints.
        seed: decides which layer comes from which checkpoint.

    Returns:
        The content of the merged checkpoint.

    Raises:
        UserError: if there are fewer than two checkpoints, or they are of different models or methods.
    """
    if len(paths) < 2:
        raise UserError("merging takes two or more checkpoints")
    checkpoints = [read_checkpoint(path) for path in paths]
    _check_alike(checkpoints, paths)

    first = checkpoints[0]
    layers = set()
    for name in first.weights:
        layer = layer_of(name)
        if layer is not None:
            layers.add(layer)

    # Sorted, so that the choice depends on the seed and the numbers of layers and checkpoints alone, and not on the
    # sequence in which a file has its weights. Not rng.randrange, whose result may change with the version of Python,
    # see ``seeded``.
    rng = seeded(seed, "merge")
    source_of_layer = {layer: int(rng.random() * len(paths)) for layer in sorted(layers)}
    weights = {name: _merged_weight(name, checkpoints, source_of_layer) for name in first.weights}

    # The metadata name the sources by their content too, because files can be moved. The W&B run of the first
    # checkpoint is left out: evaluations of the merged model would be logged to it, though it trained another model.
    sources = [{"source": str(path), "sha256": sha256(path)} for path in paths]
    metadata = replace(
        first.metadata,
        method=f"{first.metadata.method}-merged",
        seed=seed,
        merged={"sources": sources, "layers": list(source_of_layer.values())},
        wandb=None,
    )
    return {"state_dict": weights, METADATA_KEY: metadata.to_dict()}


def _check_alike(checkpoints: Sequence[Checkpoint], paths: Sequence[str | Path]) -> None:
    """Raise a UserError if the checkpoints are of different models or methods."""
    # Layers from models of the same backbone still fit together, which is the point of the paper. From models of
    # different methods they may not: one may read positions, and another not.
    first = checkpoints[0]
    for path, checkpoint in zip(paths, checkpoints):
        different = None
        if checkpoint.metadata.model != first.metadata.model:
            different = "model"
        elif checkpoint.metadata.method != first.metadata.method:
            different = "method"
        elif checkpoint.weights.keys() != first.weights.keys():
            different = "shape"
        if different:
            raise UserError(f"{path} is of another {different} than {paths[0]}, so the two can't be merged")
        # The classifier is the first one's, so that the same names in another sequence do no harm.
        match_classes(_class_names(first), _class_names(checkpoint), str(paths[0]), str(path))


def _class_names(checkpoint: Checkpoint) -> list[str] | None:
    metadata = checkpoint.metadata
    num_classes: Any = metadata.model.get("num_classes")
    return class_names(metadata.data, num_classes)


def _merged_weight(name: str, checkpoints: Sequence[Checkpoint], source_of_layer: Mapping[int, int]) -> Tensor:
    """The weight of this name in the merged model."""
    # A few parameters hold a row for each layer. These are taken apart, so that a layer keeps the row it was trained
    # with.
    dimension = LAYER_ROWS.get(name.removeprefix(BACKBONE_PREFIX))
    if dimension is not None:
        rows = []
        for row, source in source_of_layer.items():
            weight = checkpoints[source].weights[name]
            rows.append(weight.select(dimension, row))
        return torch.stack(rows, dimension)

    layer = layer_of(name)
    if layer is None:
        return checkpoints[0].weights[name]
    return checkpoints[source_of_layer[layer]].weights[name]
