"""Makes the model's input of images: resizes them when they are read, or in batches on the device, and normalises."""

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from PIL import ExifTags, Image
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from layershuffle.data.decoding import UNDECODABLE, open_file, open_image, with_channels
from layershuffle.errors import UserError
from layershuffle.plurals import counted

logger = logging.getLogger(__name__)
SMALLEST_CROP = 0.1
"""The smallest ``crop_pct``, because the whole image is resized before all but its centre is cut off."""


@dataclass(frozen=True)
class Resizing:
    """How images of another size become square images of the size that a model takes.

    Attributes:
        crop_pct: the part of the resized image's side that the centre crop keeps, 0.1 to 1; if None, 1, as in
            the paper.
        interpolation: "bilinear" (the paper's, and what None means) or "bicubic", both antialiased.
        crop_mode: whether the shorter side is resized ("center", and what None means), the image is squashed to a
            square ("squash"), or the shorter side is resized and nothing is cropped ("whole").
    """

    crop_pct: float | None = None
    interpolation: str | None = None
    crop_mode: str | None = None

    @property
    def mode(self) -> InterpolationMode:
        """The interpolation as torchvision names it."""
        return InterpolationMode(self.interpolation or "bilinear")

    def or_else(self, other: "Resizing") -> "Resizing":
        """This, but with the values of ``other`` in the place of those that are None."""
        return Resizing(
            crop_pct=other.crop_pct if self.crop_pct is None else self.crop_pct,
            interpolation=other.interpolation if self.interpolation is None else self.interpolation,
            crop_mode=other.crop_mode if self.crop_mode is None else self.crop_mode,
        )


MOST_OBLONG = 50
"""Longer images, in units of their shorter side, are cropped before they are resized."""
DEFAULT_RESIZING = Resizing()
"""The paper's (arXiv 2407.04513, section 4)."""


def resize(images: Any, size: int, resizing: Resizing = DEFAULT_RESIZING) -> Any:
    """Resize and centre crop a PIL image, or uint8 images [batch, channels, height, width].

    Of images that are more than ``MOST_OBLONG`` times as long as wide, only the middle is looked at: the whole of
    1,000,000 x 1 pixels, with 224 pixels on its shorter side, would take 150 GB.

    Args:
        images: what to resize.
        size: height and width of the result, in pixels.
        resizing: how to resize and crop.
    """
    if isinstance(images, Image.Image) and images.mode == "RGBA":
        # Pillow would weight the colours by how opaque they are, as it does not in a batch.
        bands = [resize(band, size, resizing) for band in images.split()]
        return Image.merge("RGBA", bands)
    images = _less_oblong(images)
    # The image is resized to more than the crop, which then cuts off its edge: crop_pct is what is left of a side.
    side = math.floor(size / (resizing.crop_pct or 1.0))  # as timm rounds
    sides = [side, side] if resizing.crop_mode == "squash" else [side]
    resized = F.resize(images, sides, resizing.mode, antialias=True)
    if resizing.crop_mode == "whole":
        return resized
    return F.center_crop(resized, [size, size])


def _less_oblong(images: Any) -> Any:
    """The middle of PIL images or of a batch that are longer than ``MOST_OBLONG`` times their shorter side."""
    height, width = F.get_size(images)
    shape = _less_oblong_shape(height, width)
    if shape == (height, width):
        return images
    return F.center_crop(images, list(shape))


def _less_oblong_shape(height: int, width: int) -> tuple[int, int]:
    """Height and width of what ``_less_oblong`` leaves, in pixels."""
    longest = MOST_OBLONG * min(height, width)
    # The middle stays where it is only if as much is cropped on either side.
    return (
        min(height, longest + (height - longest) % 2),
        min(width, longest + (width - longest) % 2),
    )


def whole_shape(path: str | Path | IO[bytes], size: int) -> tuple[int, int]:
    """Height and width of an image file, by its path or open, that ``resize`` makes of it with crop_mode "whole".

    JPEGs are not decoded for that. A file that can't be read counts as a square.
    """
    try:
        with open_file(path) as image:
            if image.format == "JPEG":
                width, height = image.size
                # Damaged EXIF data, which Pillow raises anything for, says nothing, as in ``as_rgb``.
                with suppress(Exception):
                    lies_on_its_side = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
                    if lies_on_its_side:
                        height, width = image.size
            else:
                # Of other formats the header may say something else than decoding gives.
                width, height = open_image(path).size
    # Decoding it will say what is wrong.
    except Exception:
        return size, size
    height, width = _less_oblong_shape(height, width)
    longer = int(size * max(height, width) / min(height, width))  # as torchvision rounds
    if height <= width:
        return size, longer
    return longer, size


class DecodedImages(Dataset):
    """Converts the images of a data set to grey, RGB or RGBA, resizes and centre crops them when they are read.

    Args:
        images: a data set of (PIL image, label). If it has ``samples``, (path, label), broken images are named by path.
        size: height and width of the result, in pixels, or None to leave the images as large as they are.
        unreadable: how many images may be broken. They are named in the log and read as None; one more is a UserError.
        resizing: how to resize and crop.
        channels: how many channels to read images in, see ``with_channels``.
    """

    def __init__(
        self,
        images: Dataset,
        size: int | None,
        unreadable: int = 0,
        resizing: Resizing = DEFAULT_RESIZING,
        channels: int = 3,
    ) -> None:
        self.images = images
        self.size = size
        self.unreadable = unreadable
        self.resizing = resizing
        self.channels = channels
        # Shared by the worker processes, so that an image counts once however often it is read.
        self.broken = torch.zeros(len(images), dtype=torch.bool).share_memory_()  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        try:
            return self.decode(index)
        except UserError as error:
            self._count_broken(index, error)
            return None

    def _count_broken(self, index: int, error: UserError) -> None:
        """Name an image that is broken when it is first read. One more than ``unreadable`` is a UserError."""
        # Every epoch reads it again.
        if self.broken[index]:
            return
        self.broken[index] = True
        count = int(self.broken.sum())
        if count <= self.unreadable:
            logger.warning("%s: %d of at most %d", error, count, self.unreadable)
            return
        text = str(error)
        if count > 1:
            text += f", and the {count - 1} named before"
        raise UserError(f"{text}; --data.unreadable {10 * count} leaves out up to {10 * count} such images") from error

    def decode(self, index: int) -> tuple[Tensor, int]:
        """The image, uint8 [channels, height, width], and its label. Raises a UserError that names a broken image."""
        try:
            image, label = self.images[index]
            image = with_channels(image, self.channels)
            if self.size is not None:
                image = resize(image, self.size, self.resizing)
        except UNDECODABLE as error:
            name = f"image {index}"
            if hasattr(self.images, "samples"):
                name = self.images.samples[index][0]
            raise UserError(f"{name} can't be read as an image ({error}): replace or remove it") from error
        return F.pil_to_tensor(image), label


def skip_unreadable(batch: Sequence[tuple[Tensor, Tensor | int] | None]) -> list[Tensor]:
    """Collate the images that could be read: uint8 [batch, channels, size, size] and the labels of each."""
    readable = [item for item in batch if item is not None]
    if not readable:
        # Grey images fit every model.
        return [torch.empty(0, 1, 1, 1, dtype=torch.uint8), torch.empty(0, dtype=torch.int64)]
    return default_collate(readable)


def replace_unreadable(batch: Sequence[tuple[Tensor, Tensor | int] | None]) -> list[Tensor]:
    """Collate a training batch of full size: others of the batch take the place of images that couldn't be read."""
    # A smaller batch would weigh its images more than other batches do, and compiled layers would be compiled anew for
    # it.
    readable = [item for item in batch if item is not None]
    if not readable:
        raise UserError(f"no image of a batch of {len(batch)} can be read: is their disk still there?")
    return default_collate([readable[index % len(readable)] for index in range(len(batch))])


def check_channels(of_images: int, of_model: int) -> None:
    """Raise a UserError if a model can't take images of so many channels. Grey images fit every model."""
    if of_images not in (1, of_model):
        raise UserError(
            f"the images have {counted(of_images, 'channel')}, but the model takes {of_model}: train one with "
            f"--model.timm_args.in_chans {of_images}, or give data with the model's channels"
        )


class Preprocess(nn.Module):
    """The preprocessing of a batch, on the device of the batch; by default the paper's (arXiv 2407.04513, section 4).

    Resize and crop images of another size with ``resize``, scale to 0..1, normalise by the backbone's own mean and
    standard deviation. Grey images are repeated over the backbone's channels.

    The arguments are those of a model's ``image_format``.

    Args:
        size: height and width of the result, in pixels.
        mean: the mean of each channel, in units of 0..1.
        std: the standard deviation of each channel, in units of 0..1.
        crop_pct: see ``Resizing``.
        interpolation: see ``Resizing``.
        crop_mode: see ``Resizing``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_pct: float | None = None,
        interpolation: str | None = None,
        crop_mode: str | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.resizing = Resizing(crop_pct, interpolation, crop_mode)
        # Buffers move to the device with the module. They are no weights, so that checkpoints don't hold them.
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: uint8 [batch, channels, height, width]. Returns float32 [batch, channels, size, size]."""
        return self.normalise(self.resized(images))

    def resized(self, images: Tensor) -> Tensor:
        """Resize and crop: uint8 [batch, channels, height, width] to uint8 [batch, channels, size, size]."""
        check_channels(images.shape[1], len(self.mean))
        if not len(images):  # An empty batch can't be resized.
            images = images.new_empty((0, images.shape[1], self.size, self.size))
        if images.shape[-2:] != (self.size, self.size):
            images = resize(images, self.size, self.resizing)
        return images

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 [batch, channels, size, size]. Returns float32 with the channels that the model takes."""
        return (images.float() / 255 - self.mean) / self.std
