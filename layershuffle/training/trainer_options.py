"""Makes the trainer, and refuses in one line what it can't do here."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from layershuffle.errors import UserError

SMALLEST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "gradient_clip_val": 0}
"""The smallest values of options of the trainer that Lightning doesn't check itself."""


def make_trainer(options: Mapping[str, Any]) -> pl.Trainer:
    """Make the trainer of a run; raises UserError if Lightning refuses its options, or they make no sense here."""
    _check(options)
    try:
        return pl.Trainer(**options)
    except (MisconfigurationException, TypeError, ValueError) as error:
        raise UserError(f"--trainer: {_on_one_line(error)}") from error


def _check(options: Mapping[str, Any]) -> None:
    """Refuse what Lightning would accept, or refuse with advice that helps nobody here."""
    if options.get("barebones"):
        raise UserError("--trainer.barebones keeps no checkpoint and no metrics, so that a run is for nothing")
    if options.get("enable_checkpointing") is False:
        raise UserError(
            "every run keeps its last and its best checkpoint: leave out --trainer.enable_checkpointing, or try a run "
            "that keeps nothing with --trainer.fast_dev_run"
        )
    for name, least in SMALLEST.items():
        value = options.get(name)
        # Written like this, so that NaN is refused, too.
        if value is not None and not value >= least:
            raise UserError(f"--trainer.{name} is a number from {least} up, not {value}")
    interval = options.get("val_check_interval")
    if isinstance(interval, (int, float)) and not interval > 0:
        raise UserError(
            f"--trainer.val_check_interval is a share of an epoch or a number of batches, above 0, not {interval}"
        )


def refusal(error: Exception) -> UserError | None:
    """What Lightning's own code has refused during a run, such as options that don't fit the data; otherwise None."""
    if isinstance(error, MisconfigurationException):
        return UserError(_on_one_line(error))
    # Lightning checks some options only when it knows the number of batches, with errors of Python's own.
    if not isinstance(error, (ValueError, RuntimeError)) or not _is_raised_by_lightning(error):
        return None
    return UserError(_on_one_line(error).replace("Pass in or modify your `EarlyStopping` callback to", "Instead,"))


def _is_raised_by_lightning(error: Exception) -> bool:
    """Whether the innermost function of the traceback is one of Lightning's."""
    # An error of a user's own class can pass through Lightning as well; only where it was raised tells whose it is.
    traceback = error.__traceback__
    if traceback is None:
        return False
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return str(traceback.tb_frame.f_globals.get("__name__", "")).startswith("lightning.")


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split())
