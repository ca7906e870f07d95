"""Models that travel with the package and are known by their names, such as ``mini_glyphs``."""

from pathlib import Path

from layershuffle.checkpoints.exported import Description, loaded_model, read_description
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.models.weights import PACKAGED, read_file


def is_published(name: str | Path) -> bool:
    """Whether a model of this name travels with the package."""
    return name in published_names()


def published_names() -> list[str]:
    """The names of the models that travel with the package."""
    return sorted(path.stem for path in PACKAGED.glob("*.json"))


def describe_published(name: str) -> Description:
    """What is known about a published model, without its weights."""
    return read_description(PACKAGED / f"{name}.json")


def load_published(name: str) -> LoadedModel:
    """Load a model that travels with the package."""
    weights = {}
    for key, value in read_file(PACKAGED / f"{name}.safetensors").items():
        weights[f"vit.{key}"] = value
    return loaded_model(describe_published(name), weights, name)
