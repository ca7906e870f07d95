"""Makes the data set again that a checkpoint records."""

import importlib
import logging
import re
from typing import Any, Literal

from layershuffle.data.config import DataConfig, argument_names, import_path, unknown_data_set
from layershuffle.data.module import ImageData
from layershuffle.data.torchvision_sets import READING, TorchvisionImages
from layershuffle.errors import UserError

logger = logging.getLogger(__name__)


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

    # Only classes that are imported already, for whatever reason, can be made again.
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

    # The user of this machine decides on its processes and its downloads, not the checkpoint.
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
    # The arguments come from the checkpoint, and a class of the user's own may raise any of these for them.
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise unknown_data_set(error) from error


def warn_of_training_images(recorded: DataConfig, data: ImageData, split: Literal["val", "test"]) -> None:
    """Log a warning if a model may have been trained on some of the images that it is studied on.

    Args:
        recorded: what the model's checkpoint says of the data set of its training.
        data: the one that it is studied on, which was set up.
        split: which of its images.
    """
    try:
        # The trusted class is that of ``data``, so that nothing is imported here.
        trained = from_config(recorded, trusted=import_path(type(data)))
    except UserError:
        # It isn't known here, so that nothing can be compared.
        return
    # Another data set has other images.
    if type(trained) is not type(data) or trained.label != data.label:
        return
    changed = []
    for name in data.deciding_arguments(split):
        before = getattr(trained, name)
        current = getattr(data, name)
        if current != before:
            changed.append(f"{name} is {current} and was {before} in its training")
    if changed:
        logger.warning(
            "the model may have been trained on some of the %s images of %s: %s", split, data.label, ", ".join(changed)
        )


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
