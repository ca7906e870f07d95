"""Makes the data set again that a checkpoint records."""

import importlib
import re
from typing import Any

from layershuffle.data.config import DataConfig, argument_names, import_path, unknown_data_set
from layershuffle.data.module import ImageData
from layershuffle.data.torchvision_sets import READING, TorchvisionImages
from layershuffle.errors import UserError


def from_config(config: DataConfig, trusted: str | None = None) -> ImageData:
    """Make a data module from what ``ImageData.config`` returned.

    A checkpoint may come from anyone. So no module is imported because a checkpoint names it, nothing is downloaded,
    unpacked or written, and the number of workers is the default.

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
        if issubclass(data_set, TorchvisionImages):
            _check_only_reads(args.get("dataset"))
        # A checkpoint from before this argument was trained on a split without regard to classes.
        if "stratified" not in args and "stratified" in argument_names(data_set):
            args["stratified"] = False
        return data_set(**args)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unknown_data_set(error) from error


def _check_only_reads(dataset: Any) -> None:
    """Raise UserError if torchvision might do more than read the files of this set."""
    if dataset not in READING:
        raise UserError(
            f"the data it was trained on, {str(dataset)[:100]!r} of torchvision, is not among those that torchvision "
            "only reads: name it yourself with --data TorchvisionImages --data.dataset NAME --data.num_classes N"
        )


def _subclasses(parent: type[ImageData]) -> list[type[ImageData]]:
    """All classes that derive from it, those that derive from another of them last."""
    children = parent.__subclasses__()
    grandchildren = []
    for child in children:
        grandchildren += _subclasses(child)
    return children + grandchildren
