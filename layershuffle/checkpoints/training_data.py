"""What checkpoints and exported folders say about the data of a training.

It is what ``ImageData.config`` returned, the "class" of the data and its "args", and the names of its "classes".
"""

from typing import Any

from layershuffle.errors import UserError
from layershuffle.models.image_format import ImageFormat

INTERPOLATIONS = ("bilinear", "bicubic")
CROP_MODES = ("center", "squash")


def class_names(data: dict[str, Any] | None, num_classes: int) -> list[str] | None:
    """The names of a model's classes, or None if the data has no names for exactly ``num_classes`` classes."""
    names = data.get("classes") if data else None
    if not isinstance(names, list) or len(names) != num_classes:
        return None
    if not all(isinstance(name, str) for name in names):
        return None
    return names


def trained_format(image_format: ImageFormat, data: dict[str, Any] | None, source: str) -> ImageFormat:
    """How images were preprocessed in a training.

    Args:
        image_format: the images that the model takes, and how they are resized where the data doesn't say it.
        data: the data of the training, if it is known.
        source: the file that says it, for error messages.

    Raises:
        UserError: if the images can't have been preprocessed so.
    """
    arguments = data.get("args") if data else None
    if not isinstance(arguments, dict):
        return image_format
    resizing = {}
    for name in ("crop_pct", "interpolation", "crop_mode"):
        if arguments.get(name) is not None:
            resizing[name] = arguments[name]
    trained = image_format._replace(**resizing)
    can_be = (
        isinstance(trained.crop_pct, (int, float))
        and 0 < trained.crop_pct <= 1
        and trained.interpolation in INTERPOLATIONS
        and trained.crop_mode in CROP_MODES
    )
    if not can_be:
        raise UserError(f"{source} is damaged: images can't be preprocessed as it says, {resizing}")
    return trained
