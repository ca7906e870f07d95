"""The folders that ``layershuffle export`` writes: their files, and how they are read."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.plain_values import fault_of_model
from layershuffle.checkpoints.training_data import class_names, read_data_config
from layershuffle.data import DataConfig
from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole
from layershuffle.models.fitting import create_fitting
from layershuffle.models.weights import read_file
from layershuffle.results import ModelInfo

DESCRIPTION_FILE = "layershuffle.json"
"""Says what is known about the model."""
WEIGHTS_FILE = "model.safetensors"
"""Holds the weights of timm's model, under timm's names."""
MORE_WEIGHTS_FILE = "layershuffle.safetensors"
"""Holds the weights that timm's models lack: of position encoding or prediction, and of choices of orders."""

REFINE_FILE = "refine.yaml"
"""A config of ``layershuffle train``, beside an export, that trains its model further."""
WIDE_FILE = "wide_vit.py"
"""Runs the model of a folder whose layers were merged."""


@dataclass(frozen=True)
class Description:
    """What the description in an exported folder says about its model.

    Attributes:
        info: its name, its source and how to make it again.
        data: the data set that it was trained on; None if unknown.
    """

    info: ModelInfo
    data: DataConfig | None


def is_exported(folder: str | Path) -> bool:
    """Whether ``layershuffle export`` wrote this folder, for timm and this package."""
    # Unlike Path.is_file, this is False for a name that is too long to be a path.
    return os.path.isfile(Path(folder) / DESCRIPTION_FILE)


def load_exported(folder: Path) -> LoadedModel:
    """Load the model of an exported folder; raises UserError if a file is damaged, or if its layers were merged."""
    if (folder / WIDE_FILE).is_file():
        raise UserError(
            f"the layers of {folder} are merged and run in one order only: its README.md says how to run it, and the "
            "checkpoint that it was exported from runs in any order"
        )
    # What only this package needs to know stands in this file, because config.json is timm's.
    description = read_description(folder / DESCRIPTION_FILE)
    config = description.info.config
    weights = {}
    for name, value in read_file(folder / WEIGHTS_FILE).items():
        weights[f"vit.{name}"] = value
    # Only models with more weights than timm's have the second file.
    if config["position"] != "none" or "choices" in config:
        weights.update(read_file(folder / MORE_WEIGHTS_FILE))
    return loaded_model(description, weights, str(folder))


def loaded_model(description: Description, weights: dict[str, Tensor], source: str) -> LoadedModel:
    """The model that a description and a state dict make, both of which come from ``source``."""
    model = create_fitting(weights, source, **description.info.config).eval()
    names = class_names(description.data, description.info.num_classes)
    return LoadedModel(model, description.info, description.data, class_names=names)


def read_description(path: Path) -> Description:
    """Read what ``write_description`` wrote; raises UserError if it is damaged."""
    content = read_json(path, what="a description of export")
    # The keys are those of the first version, so that folders of all versions can be read.
    try:
        info = ModelInfo.from_json(content["record"])
        saved_data = content["data"]
        has_position = "position" in info.config
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not has_position:
        raise UserError(f"{path} is damaged: its model has no position")
    fault = fault_of_model(info.config)
    if fault:
        raise UserError(f"{path} is damaged: {fault}")
    data = None
    if saved_data is not None:
        data = read_data_config(saved_data, path)
    return Description(info, data)


def write_description(path: Path, description: Description) -> None:
    """Write what is known about a model; raises UserError if it can't be written."""
    data = None
    if description.data is not None:
        data = description.data.to_dict()
    content = {"record": description.info.to_json(), "data": data}
    write_whole(path, json.dumps(content, indent=1) + "\n")
