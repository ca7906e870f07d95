"""The model that runs any order, its backbones, position encoding and prediction, and how models are created."""

from layershuffle.models.create import create_model
from layershuffle.models.model import OrderedViT, Output

__all__ = ["OrderedViT", "Output", "create_model"]
