"""Reads the checkpoints that ``layershuffle train`` and ``layershuffle merge`` write."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from layershuffle.checkpoints.metadata import CheckpointMetadata
from layershuffle.checkpoints.plain_values import is_whole
from layershuffle.checkpoints.training_state import check_training_state
from layershuffle.errors import UserError, shown
from layershuffle.models.state_dicts import LIGHTNINGS_RAW
from layershuffle.models.weights import read_file

SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors", ".tar", ".onnx", ".pt2")
"""What the names of files with weights or programs end in. No name of timm's does."""


@dataclass(frozen=True)
class Checkpoint:
    """What this package reads in a checkpoint. Lightning, which writes it, also keeps the optimizer's state there.

    Attributes:
        metadata: how to make the model again, and what is known about its training.
        weights: the state dict of the trained ``FineTuner``, in which the model's names begin with ``model.``.
        global_step: after how many updates it was written; 0 if it was merged.
        is_averaged: whether the weights are averages over updates, which Lightning's ``WeightAveraging`` writes.
    """

    metadata: CheckpointMetadata
    weights: dict[str, Tensor]
    global_step: int
    is_averaged: bool


def read_checkpoint(path: str | Path, *, to_continue: bool = False) -> Checkpoint:
    """Read a checkpoint. Tensors are read from the file as they are used.

    Args:
        path: the file.
        to_continue: whether its training is to go on, for which the checkpoint must hold more than a model.

    Raises:
        UserError: if the file can't be read, or neither ``layershuffle train`` nor ``layershuffle merge`` wrote it, or
            it holds no training that could go on.
    """
    content = read_file(path)
    # The metadata come first: a file of another kind is then named as such, and not called damaged.
    metadata = CheckpointMetadata.from_content(content, path)
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or not all(_is_weight(*item) for item in weights.items()):
        raise UserError(f"{path} is damaged: it holds no weights")
    global_step = content.get("global_step", 0)
    if not is_whole(global_step) or global_step < 0:
        raise UserError(f"{path} is damaged: its global_step can't be {shown(global_step)}")
    if to_continue:
        check_training_state(content, path)
    return Checkpoint(metadata, weights, global_step, LIGHTNINGS_RAW in content)


def is_file_path(source: str | Path) -> bool:
    """Whether a source of ``layershuffle.load`` is the path of a file rather than that of a folder or a model's name.

    A file that isn't there counts if its path looks like one, so that the error says what is missing.
    """
    path = Path(source)
    # A folder may have a dot in its name, too.
    if os.path.isdir(path):
        return False
    # A name on the Hugging Face hub has its slash after a colon.
    looks_like_path = "/" in str(source).partition(":")[0]
    return os.path.exists(path) or path.suffix in SUFFIXES or looks_like_path


def _is_weight(name: Any, value: Any) -> bool:
    return isinstance(name, str) and isinstance(value, Tensor)
