"""Reads image files, of any format that Pillow can read, as 8-bit grey, RGB or RGBA."""

import os
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

MAX_PIXELS = 100_000_000
"""Larger images are refused as decompression bombs. The largest of ImageNet-1k has 17 million pixels."""
FRUGAL = {"BMP", "DIB", "GIF", "JPEG", "MPO", "PCX", "PNG", "PPM", "TGA", "TIFF"}
"""Formats that take about 10 bytes of memory for each pixel, or less."""
MAX_COSTLY_PIXELS = 30_000_000
"""The same for all other formats: JPEG 2000 takes up to 27 bytes for each pixel, and WebP 23."""
STRIP_PIXELS = 1 << 20
"""How many pixels of a deep or transparent image are converted at a time."""
PICTURE_CHANNELS = (1, 3, 4)
"""The numbers of channels that pictures can be read in: grey, RGB and RGBA."""
READING = 2
"""The version of how files become pixels. Packed folders record it, because they hold what it made."""
ICONS = {"ICO", "ICNS"}
"""Formats that hold pictures which may be far larger than their headers say."""
_UNREADABLE = {"BUFR", "GRIB", "HDF5", "MPEG", "WMF", "EPS"}
"""Formats that Pillow recognises but can't draw, and EPS, which is a program that another program would run."""
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for files that are broken or are no images."""


# The limit that ``_open_icon`` changes is Pillow's for the whole process.
_ICON_LOCK = Lock()


@cache
def formats() -> dict[str, str]:
    """The formats of images that can be read here, by the extensions of files: ``.jpg`` is ``JPEG``."""
    extensions = Image.registered_extensions()  # which also loads all of Pillow's formats
    readable = Image.OPEN.keys() - _UNREADABLE
    return {extension: name for extension, name in extensions.items() if name in readable}


def why_left_out(path: str, top: str) -> str | None:
    """Why a file somewhere below the folder ``top`` is no image to be read, or None if it is one, perhaps broken.

    The extension decides, because opening each of a million files would take long. Only files with an unknown one, or
    with none, are opened to see what they are.
    """
    # The folder that the user names may itself be hidden; what is below it may not.
    if f"{os.sep}." in path[len(top) - 1 :]:
        return "hidden"
    if os.path.splitext(path)[1].lower() not in formats():
        try:
            # The files of /proc say that they are empty, and reading some of them never ends.
            if os.path.getsize(path) == 0:
                return "empty"
            open_file(path).close()
        except UNDECODABLE:
            return "no image that Pillow can read"
    return None


def open_file(path: str | Path | IO[bytes]) -> Image.Image:
    """Open an image of one of ``formats`` without decoding it, unless it is an icon.

    Raises ValueError if Pillow finds it far too large.
    """
    # Icons need a limit of their own while they are decoded, so all other formats are tried first.
    readable = set(formats().values())
    try:
        with suppress(UnidentifiedImageError):
            return Image.open(path, formats=sorted(readable - ICONS))
        return _open_icon(path, sorted(readable & ICONS))
    except Image.DecompressionBombError as error:  # which doesn't say how wide and how high the image is
        raise ValueError(f"its pixels are more than {MAX_PIXELS:,}") from error


def _open_icon(path: str | Path | IO[bytes], icons: list[str]) -> Image.Image:
    """Open and decode an icon. Only Pillow's own limit counts the pixels that its pictures really have."""
    with _ICON_LOCK:
        usual = Image.MAX_IMAGE_PIXELS
        # Pillow warns above its limit, and fails above twice as much.
        Image.MAX_IMAGE_PIXELS = MAX_COSTLY_PIXELS // 2
        try:
            image = Image.open(path, formats=icons)
            image.load()
        except Image.DecompressionBombError as error:
            raise ValueError(f"its pixels are more than {MAX_COSTLY_PIXELS:,} of an icon") from error
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    return image


def open_image(path: str | Path | IO[bytes], channels: int = 3) -> Image.Image:
    """Decode an image in so many channels, see ``with_channels``.

    Raises ValueError if its header says that it is larger than its format may be.
    """
    # The header is read before the pixels: a small file can hold billions of them.
    with open_file(path) as image:
        most = MAX_PIXELS if image.format in FRUGAL else min(MAX_PIXELS, MAX_COSTLY_PIXELS)
        if image.width * image.height > most:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {most:,} of {image.format}")
        return with_channels(image, channels)


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Any image in 8 bits and one of ``PICTURE_CHANNELS``.

    With 3 it is what ``as_rgb`` returns, and with 1 the grey of that. With 4, where it is transparent is a channel of
    its own: colours stay as the file has them, and an image without transparency is opaque everywhere.
    """
    if channels == 3:
        return as_rgb(image)
    if channels == 1:
        return as_rgb(image).convert("L")
    if image.has_transparency_data and not _is_deep(image):
        return _upright(image).convert("RGBA")
    return as_rgb(image).convert("RGBA")


def as_rgb(image: Image.Image) -> Image.Image:
    """Any image in 8-bit RGB, as a viewer shows it on a white page.

    It is turned upright as its EXIF data says, and white shows through where it is transparent: icons and logos are
    made for white pages. Of several frames the first is taken. In grey images of 16 or 32 bits, 65535 is white, or the
    largest value if that is larger; in those of floats, 1 is.
    """
    image = _upright(image)
    is_deep = _is_deep(image)
    # Almost every image ends here.
    if not is_deep and not image.has_transparency_data:
        return image.convert("RGB")

    # The steps between take many bytes for each pixel, so a large picture goes through them strip by strip.
    white = 0.0
    if is_deep:
        usual_white = 1.0 if image.mode.startswith("F") else 65535.0
        white = max(usual_white, *(_levels(strip).max() for strip, _top in _strips(image)))
    converted = Image.new("RGB", image.size)
    for strip, top in _strips(image):
        part = strip
        # Pillow would clip deep pixels at 255, which makes a 16-bit image white.
        if is_deep:
            part = Image.fromarray((_levels(strip) * (255 / white)).round().astype(np.uint8))
        if part.has_transparency_data:
            part = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part.convert("RGBA"))
        converted.paste(part.convert("RGB"), (0, top))
    return converted


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF data says."""
    with suppress(Exception):  # Damaged EXIF data, which Pillow raises anything for, says nothing.
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            return ImageOps.exif_transpose(image)
    return image


def _is_deep(image: Image.Image) -> bool:
    """Whether the image is grey with more than 8 bits."""
    return image.mode.startswith(("I", "F"))


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, int]]:
    """Parts of an image of about ``STRIP_PIXELS``, as wide as it is, and the row at which each begins."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height))), top


def _levels(image: Image.Image) -> np.ndarray:
    """The pixels of a deep grey image, float64 from 0 up."""
    return np.nan_to_num(np.asarray(image, dtype=np.float64)).clip(0)
