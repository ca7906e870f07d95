"""The record that a checkpoint carries besides its weights: how to make its model and its data again."""

from pathlib import Path
from typing import Any

from layershuffle.errors import UserError
from layershuffle.models.weights import read_file

RECORD = "layershuffle"
"""The key of the record in a checkpoint."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint of ``layershuffle train``, or a merged one.

    Returns:
        Its content, of which ``RECORD`` is the record and ``"state_dict"`` holds the weights.

    Raises:
        UserError: if the file can't be read or is not such a checkpoint.
    """
    content = read_file(path)
    record = content.get(RECORD)
    if not isinstance(record, dict) or not isinstance(record.get("model"), dict) or "state_dict" not in content:
        raise UserError(
            f"{path} is not a checkpoint of layershuffle train; to use plain weights of a timm model, name the model "
            f"and give --pretrained {path}"
        )
    return content
