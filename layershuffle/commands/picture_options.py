"""Checks the options that ``predict`` and ``embed`` share, before the model is loaded."""

from jsonargparse import Namespace

from layershuffle.errors import UserError


def check_picture_options(config: Namespace) -> None:
    """Raise a UserError if the orders to run, or the number of pictures that run together, are not clear."""
    if config.order is not None and config.random_orders:
        raise UserError("--order is one order and --random_orders samples many: give one of the two")
    if not isinstance(config.batch_size, int):
        raise UserError("--batch_size is a number here: pictures are read one by one, so large batches gain nothing")
