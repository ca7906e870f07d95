"""Vision transformers whose layers run in any order: fine-tune them, evaluate them, study them."""

from layershuffle.errors import UserError
from layershuffle.orders import Order
from layershuffle.reference import load_reference
from layershuffle.version import __version__
from layershuffle.vit import OrderedViT, Output, create_model

__all__ = ["Order", "OrderedViT", "Output", "UserError", "create_model", "load_reference", "__version__"]
