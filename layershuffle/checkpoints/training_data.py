"""What the data of a training says about its model: the names of the classes, and how images were preprocessed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from layershuffle.checkpoints.plain_values import fault_of_data
from layershuffle.data import DataConfig
from layershuffle.data.preprocessing import SMALLEST_CROP
from layershuffle.errors import UserError
from layershuffle.models.image_format import ImageFormat
from layershuffle.plurals import counted

INTERPOLATIONS = ("bilinear", "bicubic")
CROP_MODES = ("center", "squash")


def class_names(data: DataConfig | None, num_classes: int) -> list[str] | None:
    """The names of a model's classes, or None if the data has no names for exactly ``num_classes`` classes."""
    if data is None or data.classes is None or len(data.classes) != num_classes:
        return None
    return data.classes


def read_data_config(saved: Any, path: str | Path) -> DataConfig:
    """Read what a checkpoint or an exported folder records of the data of its training.

    Args:
        saved: what ``DataConfig.to_dict`` returned.
        path: of the file, for error messages.

    Raises:
        UserError: if it can't be that, or asks for more images than there are.
    """
    fault = fault_of_data(saved)
    if fault:
        raise UserError(f"{path} is damaged: {fault}")
    try:
        return DataConfig.from_dict(saved)
    except UserError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def match_classes(
    model_names: Sequence[str] | None, data_names: Sequence[str] | None, model: str, data: str = "the data"
) -> list[int] | None:
    """Compare the classes of a model with those of data by their names.

    Args:
        model_names: the names of the model's classes; None if they are unknown, which fits everything.
        data_names: the same of the data.
        model: what error messages call the model.
        data: what they call the data.

    Returns:
        The model's label of each label of the data, if the names are the same in another sequence; otherwise None.

    Raises:
        UserError: if some names differ.
    """
    if model_names is None or data_names is None or list(model_names) == list(data_names):
        return None
    # With two classes of one name, the names don't tell which label is meant.
    are_unique = len(set(model_names)) == len(model_names)
    if are_unique and sorted(model_names) == sorted(data_names):
        label_of = {name: label for label, name in enumerate(model_names)}
        return [label_of[name] for name in data_names]

    # The classes differ, and the error names the first difference.
    if len(model_names) != len(data_names):
        raise UserError(f"{model} has {counted(len(model_names), 'class')}, but {data} {len(data_names)}")
    for label, (model_name, data_name) in enumerate(zip(model_names, data_names)):
        if model_name != data_name:
            raise UserError(
                f"{model} was trained on other classes than those of {data}: class {label} is {model_name!r} there, "
                f"but {data_name!r} here"
            )
    raise AssertionError("sequences that differ have a first difference")


def trained_format(image_format: ImageFormat, data: DataConfig | None, source: str) -> ImageFormat:
    """How images were preprocessed in a training.

    Args:
        image_format: the images that the model takes, and how they are resized where the data doesn't say it.
        data: the data of the training, if it is known.
        source: the file that says it, for error messages.

    Raises:
        UserError: if the images can't have been preprocessed so.
    """
    if data is None:
        return image_format
    # None, or no value in a checkpoint of an earlier version, leaves it to the model.
    resizing = {}
    for name in ("crop_pct", "interpolation", "crop_mode"):
        if data.args.get(name) is not None:
            resizing[name] = data.args[name]
    trained = image_format._replace(**resizing)
    can_be = (
        isinstance(trained.crop_pct, (int, float))
        and SMALLEST_CROP <= trained.crop_pct <= 1
        and trained.interpolation in INTERPOLATIONS
        and trained.crop_mode in CROP_MODES
    )
    if not can_be:
        raise UserError(f"{source} is damaged: images can't be preprocessed as it says, {resizing}")
    return trained
