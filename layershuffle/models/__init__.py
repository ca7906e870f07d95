"""What runs an order: the model, position encoding and prediction, and how models are made and weights read."""

from layershuffle.models.create import create_model
from layershuffle.models.model import OrderedViT, Output

__all__ = ["OrderedViT", "Output", "create_model"]
