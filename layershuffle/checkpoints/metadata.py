"""What a checkpoint says of its training: how to make the model and its data again, and what the training cost."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from layershuffle.checkpoints.plain_values import (
    are_plain,
    fault_of_model,
    is_amount,
    is_mapping,
    is_text,
    is_whole,
)
from layershuffle.checkpoints.training_data import read_data_config
from layershuffle.data import DataConfig
from layershuffle.errors import UserError, shown

METADATA_KEY = "layershuffle"
"""The key of the metadata in a checkpoint."""


@dataclass(frozen=True, kw_only=True)
class CheckpointMetadata:
    """The metadata of a checkpoint of ``layershuffle train`` or ``layershuffle merge``, in plain values.

    Everything but the model may be missing, because other versions of the package wrote less.

    Attributes:
        version: of the package that trained the model.
        model: the arguments of ``create_model`` that make the model again.
        method: what the training is called, such as "layershuffle".
        sampler: the order sampler of the training, as text.
        position_loss: whether the loss has the "sum" or the "mean" of the layers' position predictions.
        class_weights: how much the training loss of each class counts, or "balanced".
        distillation: the options of the distillation and the "sha256" of the teacher's file, if there was a teacher.
        seed: of the training; of a merged checkpoint, the seed that chose its layers.
        compute: what the training cost: the fields of ``training.compute.Compute``.
        precision: of the training, such as "bf16-mixed".
        data: the data set of the training.
        wandb: "id" and "project" of the W&B run.
        merged: the "sources" of a merged checkpoint, each with its "source" and "sha256", and in "layers" the index of
            the source of each layer.
        thresholds: where images can have several labels, the probability from which on each class is named.
    """

    version: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    method: str | None = None
    sampler: str | None = None
    position_loss: str | None = None
    class_weights: list[float] | str | None = None
    distillation: dict[str, Any] | None = None
    seed: int | None = None
    compute: dict[str, float] | None = None
    precision: str | None = None
    data: DataConfig | None = None
    wandb: dict[str, str] | None = None
    merged: dict[str, Any] | None = None
    thresholds: list[float] | None = None

    @classmethod
    def from_content(cls, content: Mapping[str, Any], path: str | Path) -> "CheckpointMetadata":
        """Read the metadata out of the content of a checkpoint. Afterwards its types and bounds can be relied on.

        Args:
            content: what the checkpoint's file holds.
            path: of the checkpoint, for error messages.

        Raises:
            UserError: if the checkpoint has no metadata, or some that can't be.
        """
        values = content.get(METADATA_KEY)
        if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
            raise UserError(
                f"{path} is not a checkpoint of layershuffle train; to use plain weights of a timm model, name the "
                f"model and give --pretrained {path}"
            )
        # Keys that this version doesn't know are left out: a newer one may have written them.
        arguments: dict[str, Any] = {}
        for name in FIELDS:
            value = values.get(name)
            if value is None:
                continue
            if name == "data":
                arguments[name] = read_data_config(value, path)
                continue
            fault = _fault(name, value)
            if fault:
                raise UserError(f"{path} is damaged: {fault}")
            arguments[name] = value
        metadata = cls(**arguments)
        if metadata.thresholds is not None and len(metadata.thresholds) != metadata.model.get("num_classes"):
            raise UserError(f"{path} is damaged: it has not one threshold for each class")
        return metadata

    def to_dict(self) -> dict[str, Any]:
        """The plain values that a checkpoint holds under ``METADATA_KEY``."""
        values = {name: getattr(self, name) for name in FIELDS}
        if self.data is not None:
            values["data"] = self.data.to_dict()
        # Only some checkpoints have these keys.
        for name in ("merged", "thresholds"):
            if values[name] is None:
                del values[name]
        return values


FIELDS = tuple(field.name for field in fields(CheckpointMetadata))


def _fault(name: str, value: Any) -> str | None:
    """Why a value that isn't None can't be that of a field; None if it can."""
    if name == "model":
        return fault_of_model(value)
    if _CHECKS[name](value):
        return None
    return f"its {name} can't be {shown(value)}"


def _are_amounts(value: Any) -> bool:
    return is_mapping(value) and all(map(is_amount, value.values()))


def _are_texts(value: Any) -> bool:
    return is_mapping(value) and all(map(is_text, value.values()))


def _are_class_weights(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(is_amount, value))
    return is_text(value)


def _are_probabilities(value: Any) -> bool:
    return isinstance(value, list) and all(is_amount(part) and part <= 1 for part in value)


def _is_distillation(value: Any) -> bool:
    return are_plain(value) and {"teacher", "sha256"} <= value.keys()


def _is_merged(value: Any) -> bool:
    """Whether each layer comes from one of the sources."""
    if not are_plain(value):
        return False
    sources = value.get("sources")
    layers = value.get("layers")
    if not isinstance(sources, list) or not isinstance(layers, list):
        return False
    # The hash tells which file a source was, wherever it lies now.
    if not all(_are_texts(source) and {"source", "sha256"} <= source.keys() for source in sources):
        return False
    return all(is_whole(layer) and 0 <= layer < len(sources) for layer in layers)


_CHECKS = {
    "version": is_text,
    "method": is_text,
    "sampler": is_text,
    "position_loss": is_text,
    "class_weights": _are_class_weights,
    "distillation": _is_distillation,
    "seed": is_whole,
    "compute": _are_amounts,
    "precision": is_text,
    "wandb": _are_texts,
    "merged": _is_merged,
    "thresholds": _are_probabilities,
}
"""Whether a value that isn't None can be that of a field; "model" and "data" consist of many."""
