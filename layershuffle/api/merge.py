"""Merges models layer by layer."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path

import torch

from layershuffle.api.arguments import check_seed
from layershuffle.checkpoints import merging
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.errors import UserError
from layershuffle.files import write_whole


@dataclass(frozen=True)
class MergedCheckpoint:
    """A checkpoint whose layers come from others.

    Attributes:
        path: its file.
        sources: for each layer, the index of the checkpoint that it comes from, counted from 0.
    """

    path: Path
    sources: list[int]

    def __fspath__(self) -> str:
        """The path of the file: a merged checkpoint stands wherever a checkpoint is taken."""
        return str(self.path)


def merge(
    checkpoints: Sequence[str | PathLike[str]], output: str | Path = "merged.ckpt", *, seed: int = 0
) -> MergedCheckpoint:
    """Take each layer at random from one of several models of the same backbone (arXiv 2407.04513v1).

    Args:
        checkpoints: two or more checkpoints of ``layershuffle train``, of one backbone and method, or what
            ``layershuffle.train`` returned.
        output: the file of the merged checkpoint, a new one.
        seed: decides which layer comes from which model.

    Raises:
        UserError: if the models differ, a checkpoint can't be read, or the file is there already.
    """
    check_seed(seed)
    output = Path(output)
    if output.exists():
        raise UserError(f"{output} is there already: give another name for the merged checkpoint, or remove it")
    content = merging.merge([fspath(checkpoint) for checkpoint in checkpoints], seed)
    # By way of memory: a file that is written piece by piece could be cut off, and look like a checkpoint.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_whole(output, buffer.getbuffer())
    return MergedCheckpoint(output, content[METADATA_KEY]["merged"]["layers"])
