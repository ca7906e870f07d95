"""Vision transformers whose layers run in any order: fine-tune them, evaluate them, study them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from layershuffle.errors import UserError
from layershuffle.orders import Order
from layershuffle.version import __version__

if TYPE_CHECKING:
    from layershuffle.api.train import TrainedRun, train
    from layershuffle.checkpoints.authors import load_reference
    from layershuffle.checkpoints.loaded_model import LoadedModel
    from layershuffle.checkpoints.loading import load
    from layershuffle.models import OrderedViT, Output, create_model

_HOMES = {
    "train": "api.train",
    "TrainedRun": "api.train",
    "load": "checkpoints.loading",
    "LoadedModel": "checkpoints.loaded_model",
    "load_reference": "checkpoints.authors",
    "OrderedViT": "models",
    "Output": "models",
    "create_model": "models",
}

__all__ = [
    "LoadedModel",
    "Order",
    "OrderedViT",
    "Output",
    "TrainedRun",
    "UserError",
    "create_model",
    "load",
    "load_reference",
    "train",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import what needs torch when it is first used, so that `layershuffle --help` needn't wait for it."""
    if name in _HOMES:
        return getattr(import_module(f"layershuffle.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
