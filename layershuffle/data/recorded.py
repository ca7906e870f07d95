"""Makes the data set again that a checkpoint records."""

import importlib
import re

from layershuffle.data.config import DataConfig, argument_names, import_path, unknown_data_set
from layershuffle.data.module import ImageData
from layershuffle.errors import UserError


def from_config(config: DataConfig, trusted: str | None = None) -> ImageData:
    """Make a data module from what ``ImageData.config`` returned.

    A checkpoint may come from anyone. So no module is imported because a checkpoint names it, nothing is downloaded,
    and the number of workers is the default.

    Args:
        config: the class and its arguments.
        trusted: the import path of a class, if the caller named it. It is imported if it is the one in ``config``.

    Raises:
        UserError: if the class is unknown or doesn't take these arguments.
    """
    if trusted == config.name:
        try:
            importlib.import_module(config.name.rpartition(".")[0])
        except ImportError as error:
            raise UserError(f"{trusted} can't be imported ({error}): run this in the folder that holds it") from error

    known: dict[str, type[ImageData]] = {}
    for data_set in _subclasses(ImageData):
        known[data_set.__name__] = data_set
        known[import_path(data_set)] = data_set
    is_import_path = re.fullmatch(r"\w+(\.\w+)+", config.name) is not None
    if config.name not in known and config.name != trusted and is_import_path:
        raise UserError(
            f"the data set it was trained on, {config.name}, is not known here: if you trust its code, add --data "
            f"{config.name}"
        )

    args = config.args | {"workers": None}
    if "download" in args:
        args["download"] = False
    try:
        data_set = known[config.name]
        # A checkpoint from before this argument was trained on a split without regard to classes.
        if "stratified" not in args and "stratified" in argument_names(data_set):
            args["stratified"] = False
        return data_set(**args)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unknown_data_set(error) from error


def _subclasses(parent: type[ImageData]) -> list[type[ImageData]]:
    """All classes that derive from it, those that derive from another of them last."""
    children = parent.__subclasses__()
    grandchildren = []
    for child in children:
        grandchildren += _subclasses(child)
    return children + grandchildren
