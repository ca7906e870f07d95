"""A model that was loaded: it classifies PIL images, and knows where it is from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from layershuffle.checkpoints.likely_classes import LikelyClasses, likely_classes
from layershuffle.checkpoints.training_data import trained_format
from layershuffle.data import DataConfig
from layershuffle.data.decoding import PICTURE_CHANNELS, UNDECODABLE, open_image, with_channels
from layershuffle.data.picture_files import find_pictures
from layershuffle.data.preprocessing import Preprocess, Resizing, resize
from layershuffle.errors import UserError
from layershuffle.models.image_format import ImageFormat
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, OrderLike
from layershuffle.plurals import counted
from layershuffle.results import ModelInfo

Picture = Image.Image | str | Path
"""A PIL image, the path of its file, or a folder with pictures."""
BATCH_SIZE = 64
"""How many images ``LoadedModel.predict`` classifies together."""


@dataclass(frozen=True)
class LoadedModel:
    """A model and what is known about it.

    Attributes:
        model: the model, in evaluation mode. ``model(images, order)`` takes what ``preprocess`` returns.
        info: its name, its source and how to make it again, as results files have it.
        data: the data set that it was trained on; None if unknown.
        wandb: the id and the project of the W&B run that trained it, if any.
        authors: whether it is one of the LayerShuffle authors' checkpoints.
        image_format: how timm preprocesses images for it, if it is a timm model as timm has it.
        class_names: the names of its classes, if they are known.
        command: the command that trained it, if it is known; the model card says it.
    """

    model: OrderedViT
    info: ModelInfo
    data: DataConfig | None = None
    wandb: dict[str, str] | None = None
    authors: bool = False
    image_format: ImageFormat | None = None
    class_names: list[str] | None = None
    command: str | None = None

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
        """How images were preprocessed in its training; raises UserError if the checkpoint says what can't be."""
        return trained_format(self.image_format or self.model.image_format, self.data, str(self.info.source))

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Make the model's input of PIL images of any size and mode: float32 [images, channels, size, size].

        Raises:
            UserError: if the checkpoint says that images were preprocessed in a way that can't be.
        """
        # Each picture is resized by itself, as they have different sizes, and only then do they fit into a batch.
        size, mean, std, crop_pct, interpolation, crop_mode = self.trained_format
        resizing = Resizing(crop_pct, interpolation, crop_mode)
        pixels = []
        for image in images:
            resized = resize(with_channels(image, self.channels), size, resizing)
            pixels.append(pil_to_tensor(resized))
        return Preprocess(size, mean, std)(torch.stack(pixels))

    @property
    def channels(self) -> int:
        """How many channels the images have that the model takes."""
        return self.model.image_shape[0]

    def check_takes_pictures(self) -> None:
        """Raise UserError if picture files can't have as many channels as the model takes."""
        if self.channels not in PICTURE_CHANNELS:
            raise UserError(
                f"{self.info.name} takes images of {counted(self.channels, 'channel')}, and picture files have 1 "
                "(grey), 3 (RGB) or 4 (RGBA): run the model itself on tensors, model(images), or evaluate it on a data "
                "set of your own"
            )

    def check(self, order: OrderLike) -> Order:
        """What ``model.check`` returns, or a UserError if the order has no layers: their answer would mean nothing."""
        checked = self.model.check(order)
        if not checked:
            raise UserError("an order to predict in needs at least one layer, such as '3 1 2'")
        return checked

    @torch.inference_mode()
    def predict(
        self,
        pictures: Picture | Sequence[Picture],
        top: int = 5,
        order: OrderLike | None = None,
        orders: Sequence[OrderLike] = (),
    ) -> list[LikelyClasses]:
        """Classify pictures, on the device that the model is on.

        Args:
            pictures: PIL images of any size and mode, paths of files, or folders, whose pictures are taken in the
                sequence of their paths; one of these, or several.
            top: how many of the likeliest classes to return.
            order: the order that the layers run in; by default the model's base order.
            orders: in place of ``order``, several orders. The probabilities are their means.

        Returns:
            The likeliest classes of each picture, the likeliest first, and how far the orders disagree about it.

        Raises:
            UserError: if the model can't run an order, an order has no layers, or a picture isn't there or can't be
                read.
        """
        if order is not None and orders:
            raise UserError("order is one order and orders are several: give one of the two")
        self.check_takes_pictures()
        to_run: list[Order | None]
        if orders:
            to_run = [self.check(given) for given in orders]
        elif order is not None:
            to_run = [self.check(order)]
        else:
            # With None the model runs its base order, or lets each image choose its own if it was trained to.
            to_run = [None]
        images = _with_files_of_folders(pictures)

        # A batch at a time, because thousands of opened photographs would not fit into memory.
        device = next(self.model.parameters()).device
        predictions = []
        for start in range(0, len(images), BATCH_SIZE):
            opened = [_opened(image, self.channels) for image in images[start : start + BATCH_SIZE]]
            batch = self.preprocess(opened).to(device)
            logits = torch.stack([self.model(batch, next_order).logits for next_order in to_run])
            # From [orders, batch, classes] to [orders, classes] for each image.
            for image_logits in logits.unbind(dim=1):
                likeliest = likely_classes(image_logits, self.classes, top, self.info.thresholds)
                predictions.append(likeliest)
        return predictions


def _with_files_of_folders(pictures: Picture | Sequence[Picture]) -> list[Image.Image | str]:
    """The images and the paths of files among ``pictures``, with the files of folders in their place."""
    if isinstance(pictures, (str, Path, Image.Image)):
        pictures = [pictures]
    images: list[Image.Image | str] = []
    for picture in pictures:
        if isinstance(picture, Image.Image):
            images.append(picture)
        else:
            images += find_pictures([picture])
    return images


def _opened(picture: Image.Image | str, channels: int) -> Image.Image:
    """The picture, read from its file if it is a path; raises UserError if it can't be read."""
    if isinstance(picture, Image.Image):
        return picture
    try:
        return open_image(picture, channels)
    except UNDECODABLE as error:
        raise UserError(f"{picture} can't be read as an image ({error}): replace or remove it") from error
