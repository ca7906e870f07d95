"""Vision transformers whose layers run in any order: fine-tune them, evaluate them, study them."""

from layershuffle import moved
from layershuffle.checkpoints.authors import load_reference
from layershuffle.errors import UserError
from layershuffle.models import OrderedViT, Output, create_model
from layershuffle.orders import Order
from layershuffle.version import __version__

__all__ = [
    "Order",
    "OrderedViT",
    "Output",
    "UserError",
    "create_model",
    "load_reference",
    "moved",
    "__version__",
]
