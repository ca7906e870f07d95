"""Whether a metric is better the lower or the higher it is, so that no callback keeps the worst epoch for the best."""

from collections.abc import Iterable
from typing import Any, Literal

from layershuffle.errors import UserError

Direction = Literal["min", "max"]

DIRECTIONS: dict[str, Direction] = {
    "val/loss": "min",
    "val/sequential": "max",
    "val/arbitrary": "max",
    "train/accuracy": "max",
    "train/f1": "max",
    "train/images_per_second": "max",
}
"""The metrics of a run that are better when they are low ("min") or high ("max")."""


def direction(metric: str) -> Direction | None:
    """Whether a metric is better when it is low ("min") or high ("max"); None if only its author knows."""
    # Every term of an objective that is minimised is a loss of its own.
    if metric.startswith("train/") and metric.endswith("loss"):
        return "min"
    return DIRECTIONS.get(metric)


def checked_mode(metric: str, mode: str | None, option: str) -> str:
    """The mode in which a callback compares the values of a metric: "min" or "max".

    Args:
        metric: what the callback monitors.
        mode: the mode that was chosen, or None to take the metric's direction.
        option: what sets the mode, for error messages.

    Raises:
        UserError: if the chosen mode contradicts the direction, or nobody knows the direction.
    """
    known = direction(metric)
    if known is None:
        if mode is None:
            raise UserError(f"is {metric} better when it is low or when it is high? Say so: {option} min or max")
        return mode
    if mode not in (None, known):
        better = "low" if known == "min" else "high"
        raise UserError(f"{metric} is better when it is {better}, so {option} {mode} prefers the worst: use {known}")
    return known


def check_monitors(callbacks: Iterable[Any]) -> None:
    """Raise a UserError if a callback, such as EarlyStopping, takes the worst value of its metric for the best."""
    for callback in callbacks:
        metric = getattr(callback, "monitor", None)
        mode = getattr(callback, "mode", None)
        if isinstance(metric, str) and isinstance(mode, str):
            checked_mode(metric, mode, f"{type(callback).__name__} with --trainer.callbacks.mode")
