"""Decodes images when they are read, and makes the model's input of batches of them on the device."""

import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from layershuffle.errors import UserError

MAX_PIXELS = 100_000_000
"""Larger images are refused as decompression bombs. The largest of ImageNet-1k has 17 million pixels."""
READING = 2
"""The version of how files become pixels. Packed folders record it, because they hold what it made."""
_UNREADABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS"}
"""Formats that Pillow recognises but can't draw, and EPS, which is a program that another program would run."""
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are broken or are no images."""


class DecodedImages(Dataset):
    """Converts the images of a data set to RGB, resizes and centre crops them when they are read.

    Args:
        images: a data set of (PIL image, label). If it has ``samples``, (path, label), broken images are named by path.
        size: height and width of the result, in pixels, or None to leave the images as large as they are.
        unreadable: how many images may be broken. They are named on stderr and read as None; one more is a UserError.
        resizing: the further arguments of ``resize``.
    """

    def __init__(self, images: Dataset, size: int | None, unreadable: int = 0, *resizing: Any) -> None:
        self.images, self.size, self.unreadable, self.resizing = images, size, unreadable, resizing
        # Shared by the worker processes, so that an image counts once however often it is read.
        self.broken = torch.zeros(len(images), dtype=torch.bool).share_memory_()  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, int] | None:
        try:
            return self.decode(index)
        except UserError as error:
            if not self.broken[index]:
                self.broken[index] = True
                count = int(self.broken.sum())
                if count > self.unreadable:
                    raise UserError(
                        f"{error}, and the {count - 1} named before" if count > 1 else str(error)
                    ) from error
                print(f"{error}: {count} of at most {self.unreadable}", file=sys.stderr)
            return None

    def decode(self, index: int) -> tuple[Tensor, int]:
        """The image, uint8 [3, height, width], and its label. A broken image raises a UserError that names it."""
        try:
            image, label = self.images[index]
            image = as_rgb(image)
            if self.size is not None:
                image = resize(image, self.size, *self.resizing)
        except UNDECODABLE as error:
            name = self.images.samples[index][0] if hasattr(self.images, "samples") else f"image {index}"
            raise UserError(f"{name} can't be read as an image ({error}): replace or remove it") from error
        return F.pil_to_tensor(image), label


def skip_unreadable(batch: Sequence[tuple[Tensor, int] | None]) -> list[Tensor]:
    """Collate the images that could be read: uint8 [batch, 3, size, size] and int64 labels [batch]."""
    found = [item for item in batch if item is not None]
    return default_collate(found) if found else [torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0).long()]


def replace_unreadable(batch: Sequence[tuple[Tensor, int] | None]) -> list[Tensor]:
    """Collate a training batch of full size: others of the batch take the place of images that couldn't be read."""
    found = [item for item in batch if item is not None]
    if not found:
        raise UserError(f"none of the {len(batch)} images of a batch can be read: is their disk still there?")
    return default_collate([found[index % len(found)] for index in range(len(batch))])


@cache
def formats() -> dict[str, str]:
    """The formats of images that can be read here, by the extensions of files: ``.jpg`` is ``JPEG``."""
    readable = Image.registered_extensions().items()  # which also loads all of Pillow's formats
    return {extension: name for extension, name in readable if name in Image.OPEN and name not in _UNREADABLE}


def why_left_out(path: str, top: str) -> str | None:
    """Why a file somewhere below the folder ``top`` is no image to be read, or None if it is one, perhaps broken.

    The extension decides, because opening each of a million files would take long. Only files with an unknown one, or
    with none, are opened to see what they are.
    """
    if f"{os.sep}." in path[len(top) - 1 :]:
        return "hidden"
    if os.path.splitext(path)[1].lower() not in formats():
        try:
            open_file(path).close()
        except UNDECODABLE:
            return "no image that Pillow can read"
    return None


def open_file(path: str | Path | IO[bytes]) -> Image.Image:
    """Open an image of one of ``formats`` without decoding it. Raises ValueError if Pillow finds it far too large."""
    try:
        return Image.open(path, formats=sorted(set(formats().values())))
    except Image.DecompressionBombError as error:  # which doesn't say how wide and how high the image is
        raise ValueError(f"its pixels are more than {MAX_PIXELS:,}") from error


def open_image(path: str | Path | IO[bytes]) -> Image.Image:
    """Decode an image as RGB, or raise ValueError if its header says that it is larger than ``MAX_PIXELS``."""
    with open_file(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
        return as_rgb(image)


def as_rgb(image: Image.Image) -> Image.Image:
    """Any image in 8-bit RGB, as a viewer shows it on a white page.

    It is turned upright as its EXIF data says, and white shows through where it is transparent: icons and logos are
    drawn for white pages. Of several frames the first is taken. In grey images of 16 or 32 bits, 65535 is white, or the
    largest value if that is larger; in those of floats, 1 is.
    """
    with suppress(Exception):  # Damaged EXIF data, which Pillow raises anything for, says nothing.
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # Pillow would clip them at 255.
        values = np.nan_to_num(np.asarray(image, dtype=np.float64)).clip(0)
        white = max(65535 if image.mode.startswith("I") else 1, values.max())
        image = Image.fromarray((values * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def resize(
    images: Any,
    size: int,
    crop_pct: float | None = None,
    interpolation: str | None = None,
    crop_mode: str | None = None,
) -> Any:
    """Resize and centre crop a PIL image, or uint8 images [batch, channels, height, width].

    Args:
        images: what to resize.
        size: height and width of the result, in pixels.
        crop_pct: the part of the resized image's side that the crop keeps; by default 1, as in the paper.
        interpolation: "bilinear" (the paper, and the default) or "bicubic", both antialiased.
        crop_mode: whether the shorter side is resized ("center", the default), the image is squashed to a square
            ("squash"), or the shorter side is resized and nothing is cropped ("whole").
    """
    side = math.floor(size / (crop_pct or 1.0))  # as timm rounds
    sides = [side, side] if crop_mode == "squash" else [side]
    resized = F.resize(images, sides, InterpolationMode(interpolation or "bilinear"), antialias=True)
    return resized if crop_mode == "whole" else F.center_crop(resized, [size, size])


def whole_shape(path: str | Path, size: int) -> tuple[int, int]:
    """Height and width of an image file that ``resize`` makes of it with crop_mode "whole".

    JPEGs are not decoded for that. A file that can't be read counts as a square.
    """
    try:
        with open_file(path) as image:
            if image.format == "JPEG":
                width, height = image.size
                with suppress(Exception):  # as in as_rgb
                    if image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):  # It lies on its side.
                        width, height = height, width
            else:
                width, height = open_image(path).size
    except Exception:  # Decoding it will say what is wrong.
        return size, size
    shorter, longer = sorted((height, width))
    longer = int(size * longer / shorter)  # as torchvision rounds
    return (size, longer) if height <= width else (longer, size)


class Preprocess(nn.Module):
    """The preprocessing of a batch, on the device of the batch; by default the paper's (arXiv 2407.04513, section 4).

    Resize and crop images of another size with ``resize``, scale to 0..1, normalise by the backbone's own mean and
    standard deviation. Grey images are repeated over the backbone's channels.

    Args:
        size: height and width of the result, in pixels.
        mean: of each channel, in units of 0..1; ``std`` alike.
        resizing: the further arguments of ``resize``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float], *resizing: Any) -> None:
        super().__init__()
        self.size, self.resizing = size, resizing
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """images: uint8 [batch, channels, height, width]. Returns float32 [batch, channels, size, size]."""
        return self.normalise(self.resized(images))

    def resized(self, images: Tensor) -> Tensor:
        """Resize and crop: uint8 [batch, channels, height, width] to uint8 [batch, channels, size, size]."""
        if images.shape[1] not in (1, len(self.mean)):
            raise UserError(
                f"the images have {images.shape[1]} channels, but the model takes {len(self.mean)}: train one with "
                f"--model.timm_args.in_chans {images.shape[1]}"
            )
        if not len(images):  # An empty batch can't be resized.
            images = images.new_empty((0, images.shape[1], self.size, self.size))
        if images.shape[-2:] != (self.size, self.size):
            images = resize(images, self.size, *self.resizing)
        return images

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise uint8 [batch, channels, size, size]. Returns float32 with the channels that the model takes."""
        return (images.float() / 255 - self.mean) / self.std
