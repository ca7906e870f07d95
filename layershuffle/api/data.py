"""The data set that a Python program names, or that a model was trained on."""

from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.config_files import find
from layershuffle.data import ImageData, from_config
from layershuffle.errors import UserError, last_line
from layershuffle.files import read_yaml

DataLike = str | Path | ImageData | None
"""A data set, the name or the path of its config, or None for the data that the model was trained on."""


def as_data(data: DataLike, loaded: LoadedModel) -> ImageData:
    """The data set for a model.

    Args:
        data: a data set, which is copied; or the name of a data set's config, such as "glyphs", or its path. None
            stands for the data that the model was trained on.
        loaded: the model.

    Raises:
        UserError: if there is no such data set.
    """
    if isinstance(data, ImageData):
        # A new one, because preparing it for a model changes it, and the caller may use it for another model.
        return type(data)(**data.config().args)
    if data is not None:
        return read_data(str(data))
    if loaded.data is None:
        raise UserError(
            f"{loaded.info.name} doesn't say which data it was trained on: name a data set, such as imagenet"
        )
    return from_config(loaded.data)


def read_data(name: str) -> ImageData:
    """The data set that a config describes; raises UserError if it describes none."""
    path = find(name)
    content = read_yaml(path)
    section: Any = content.get("data") if isinstance(content, dict) else None
    if not isinstance(section, dict) or not isinstance(section.get("class_path"), str):
        raise UserError(f"{path} describes no data set: it has no data.class_path")
    class_path = section["class_path"]
    arguments = section.get("init_args") or {}
    try:
        # A class of this package needs no path.
        if "." not in class_path:
            class_path = f"layershuffle.data.{class_path}"
        data_class = resolve_name(class_path)
        return data_class(**arguments)
    except UserError:
        # It is a ValueError too, but already says what to do.
        raise
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"the data set of {path} can't be made: {last_line(error)}") from error
