"""A model that was loaded: it classifies PIL images, and knows where it is from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from layershuffle.checkpoints.likely_classes import LikelyClass, likely_classes
from layershuffle.checkpoints.training_data import trained_format
from layershuffle.data.decoding import as_rgb
from layershuffle.data.preprocessing import Preprocess, Resizing, resize
from layershuffle.errors import UserError
from layershuffle.models.image_format import ImageFormat
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, OrderLike
from layershuffle.results import ModelInfo

BATCH_SIZE = 64
"""How many images ``LoadedModel.predict`` classifies together."""


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is known about it.

    Attributes:
        model: the model, in evaluation mode. ``model(images, order)`` takes what ``preprocess`` returns.
        info: its name, its source and how to make it again, as results files have it.
        data: the data it was trained on, as ``ImageData.config`` describes it, with the names of the "classes"; None if
            unknown.
        wandb: the id and the project of the W&B run that trained it, if any.
        authors: whether it is one of the LayerShuffle authors' checkpoints.
        image_format: how timm preprocesses images for it, if it is a timm model as timm has it.
        class_names: the names of its classes, if they are known.
    """

    model: OrderedViT
    info: ModelInfo
    data: dict[str, Any] | None = None
    wandb: dict[str, str] | None = None
    authors: bool = False
    image_format: ImageFormat | None = None
    class_names: list[str] | None = None

    @property
    def order(self) -> Order:
        """The model's base order."""
        return self.model.order

    @property
    def classes(self) -> list[str]:
        """The names of the classes, or where they are unknown, their numbers from 0."""
        return self.class_names or [str(label) for label in range(self.info.num_classes)]

    @property
    def trained_format(self) -> ImageFormat:
        """How images were preprocessed in its training.

        Raises UserError if the checkpoint says what can't be.
        """
        return trained_format(self.image_format or self.model.image_format, self.data, str(self.info.source))

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Make the model's input of PIL images of any size and mode: float32 [images, channels, size, size]."""
        size, mean, std, crop_pct, interpolation, crop_mode = self.trained_format
        resizing = Resizing(crop_pct, interpolation, crop_mode)
        # Images are resized in colour, as in training, and only then made grey for models that take grey ones.
        is_grey = len(mean) == 1
        pixels = []
        for image in images:
            resized = resize(as_rgb(image), size, resizing)
            if is_grey:
                resized = resized.convert("L")
            pixels.append(pil_to_tensor(resized))
        return Preprocess(size, mean, std)(torch.stack(pixels))

    def check(self, order: OrderLike) -> Order:
        """What ``model.check`` returns, or a UserError if the order has no layers: their answer would mean nothing."""
        checked = self.model.check(order)
        if not checked:
            raise UserError("an order to predict in needs at least one layer, such as '3 1 2'")
        return checked

    @torch.inference_mode()
    def predict(
        self, images: Sequence[Image.Image], top: int = 5, order: OrderLike | None = None
    ) -> list[tuple[LikelyClass, ...]]:
        """Classify PIL images, on the device that the model is on.

        Args:
            images: the images, of any size and mode; see ``data.decoding.as_rgb`` for how they are read.
            top: how many of the likeliest classes to return.
            order: the order that the layers run in; by default the model's base order.

        Returns:
            The likeliest classes of each image, the likeliest first.

        Raises:
            UserError: if the model can't run the order, or the order has no layers.
        """
        if order is not None:
            order = self.check(order)
        device = next(self.model.parameters()).device
        predictions = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = self.preprocess(images[start : start + BATCH_SIZE]).to(device)
            logits = self.model(batch, order).logits
            predictions += [likely_classes(row[None], self.classes, top) for row in logits]
        return predictions
