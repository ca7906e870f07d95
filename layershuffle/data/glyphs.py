"""Characters of many scripts in twelve typefaces: a hard task with real shapes that needs no download."""

import math
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2.functional import pil_to_tensor

from layershuffle.data.module import ImageData
from layershuffle.data.sets import TensorImages
from layershuffle.errors import UserError

FACES = [
    "Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique",
    "SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique",
    "Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic",
]  # fmt: skip
"""The typefaces of the DejaVu family that come with matplotlib and have all these characters."""
CANVAS = 40
"""Side length of the drawn characters, in pixels."""
IMAGE = 28
"""Side length of the images that are cut out of them, in pixels."""
PART = 4096
"""Images are distorted so many at a time, because they are floats meanwhile."""


class Glyphs(ImageData):
    """Latin, Greek, Cyrillic, Armenian and Georgian letters, and digits, in grey images of 28 x 28 pixels.

    The model has to classify the characters in typefaces that training doesn't show. Each image is one character in
    a random typeface, turned, slanted, stretched, shifted, thickened or thinned, with random contrast and noise. The
    images depend on the arguments alone: they are drawn once, and kept in memory.

    Characters that look like another, such as the Latin and the Greek capital A, are left out: the squared difference
    between any two of those that are left is over a tenth of their mean squared norm, in each of the typefaces.

    Args:
        classes: how many of the 578 characters to use.
        test_faces: the typefaces of the test images, from ``FACES``. The training images show the other ones.
        images_per_class: training images of each character.
        test_images_per_class: test images of each character.
        distortion: how strong the distortions are: 0 leaves only the typefaces, 1.5 is hard for people.
        batch_size: images per training step and process.
        stratified: see ``ImageData``. By default not, as in the published results.
        kwargs: further arguments of ``ImageData``.
    """

    def __init__(
        self,
        classes: int = 500,
        test_faces: Sequence[str] = ("Sans-BoldOblique", "SansMono-Bold", "Serif-Italic"),
        images_per_class: int = 100,
        test_images_per_class: int = 10,
        distortion: float = 1.0,
        batch_size: int = 64,
        stratified: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, stratified=stratified, **kwargs)
        if not 2 <= classes <= len(characters()):
            raise UserError(f"there are from 2 to {len(characters())} classes of glyphs, not {classes}")
        if not set(test_faces) < set(FACES) or not test_faces:
            raise UserError(f"test_faces are some, but not all, of {', '.join(FACES)}")
        if images_per_class < 1 or test_images_per_class < 1 or not 0 <= distortion < math.inf:
            raise UserError("a glyph has one image or more, and its distortion is from 0 up")
        self.classes = classes
        self.test_faces = list(test_faces)
        self.images_per_class = images_per_class
        self.test_images_per_class = test_images_per_class
        self.distortion = distortion
        self.num_classes = classes

    @property
    def has_handed_classes(self) -> bool:
        return True

    @property
    def class_names(self) -> list[str]:
        """The characters."""
        return list(characters()[: self.classes])

    def test_arguments(self) -> tuple[str, ...]:
        return ("test_faces",)

    def load(self, train: bool) -> TensorImages:
        """The training or test images, which are the same for every seed of a run."""
        if train:
            typefaces = [index for index, face in enumerate(FACES) if face not in self.test_faces]
            count = self.images_per_class
        else:
            typefaces = [index for index, face in enumerate(FACES) if face in self.test_faces]
            count = self.test_images_per_class
        labels = torch.arange(self.classes).repeat_interleave(count)

        # Training and test images have a seed each, so that one doesn't depend on how many there are of the other.
        rng = torch.Generator().manual_seed(int(train))
        choice = torch.randint(len(typefaces), (len(labels),), generator=rng)
        faces = torch.tensor(typefaces)[choice]

        clean = all_drawn()[: self.classes]
        images = []
        for label, face in zip(labels.split(PART), faces.split(PART)):
            images.append(distorted(clean[label, face], self.distortion, rng))
        return TensorImages(torch.cat(images), labels)


@cache
def characters() -> str:
    """All characters, mixed, so that the first ones are of all scripts."""
    return (files("layershuffle.data") / "glyphs.txt").read_text(encoding="utf-8").strip()


@cache
def all_drawn() -> Tensor:
    """Every character in every typeface in three strokes: uint8 [characters, typefaces, 3, CANVAS, CANVAS].

    The strokes are a pixel thinner than the typeface's own, its own, and a pixel thicker.
    """
    # A maximum over 3 x 3 pixels makes white strokes a pixel thicker on each side, and black ground likewise.
    regular = torch.stack([draw(characters(), face) for face in FACES], dim=1)
    thin = 255 - F.max_pool2d(255 - regular, 3, 1, 1)
    thick = F.max_pool2d(regular, 3, 1, 1)
    return torch.stack([thin, regular, thick], dim=2)


def draw(text: str, face: str) -> Tensor:
    """The characters of a text in one of ``FACES``, white on black: uint8 [characters, CANVAS, CANVAS]."""
    path = Path(mpl.get_data_path(), "fonts", "ttf", f"DejaVu{face}.ttf")
    font = ImageFont.truetype(path, size=26)
    images = []
    for character in text:
        image = Image.new("L", (CANVAS, CANVAS))
        # The baseline is at the same height in all images, and the character is centred on it.
        ImageDraw.Draw(image).text((CANVAS / 2, 0.68 * CANVAS), character, fill=255, font=font, anchor="ms")
        images.append(pil_to_tensor(image)[0])
    return torch.stack(images)


def distorted(images: Tensor, strength: float, rng: torch.Generator) -> Tensor:
    """Distort each image in its own way, and cut it to IMAGE x IMAGE pixels around its centre.

    Args:
        images: what ``all_drawn`` returns for each image, uint8 [images, 3, CANVAS, CANVAS].
        strength: see ``Glyphs``.
        rng: the only source of randomness.

    Returns:
        uint8 [images, 1, IMAGE, IMAGE].
    """

    def uniform(low: float, high: float) -> Tensor:
        return strength * torch.empty(len(images)).uniform_(low, high, generator=rng)

    # Strokes between half-way to the thin drawing and the thick one.
    thickness = uniform(-0.6, 0.6).clamp(-1, 1).view(-1, 1, 1)
    thin, regular, thick = (images.float() / 255).unbind(dim=1)
    thicker = regular.lerp(thick, thickness.abs())
    thinner = regular.lerp(thin, thickness.abs() / 2)
    ink = torch.where(thickness > 0, thicker, thinner)

    # The affine map from each pixel of the result to the canvas: [images, 2, 3]. The sequence of random numbers counts.
    angle = uniform(-0.15, 0.15)
    slant = uniform(-0.15, 0.15)
    width = uniform(-0.12, 0.12)
    height = uniform(-0.12, 0.12)
    across = torch.stack([angle.cos(), slant - angle.sin()], dim=1) * width.exp()[:, None]
    down = torch.stack([angle.sin(), angle.cos()], dim=1) * height.exp()[:, None]
    linear = torch.stack([across, down], dim=1) * (IMAGE / CANVAS)
    shift = torch.stack([uniform(-0.09, 0.09), uniform(-0.09, 0.09)], dim=1)
    affine = torch.cat([linear, shift[:, :, None]], dim=2)
    grid = F.affine_grid(affine, [len(images), 1, IMAGE, IMAGE], align_corners=False)
    ink = F.grid_sample(ink[:, None], grid, align_corners=False)

    # The contrast of ink and page, and noise.
    dark = uniform(0, 0.18).view(-1, 1, 1, 1)
    bright = 1 - uniform(0, 0.3).view(-1, 1, 1, 1)
    noise = uniform(0, 0.05).view(-1, 1, 1, 1) * torch.randn(ink.shape, generator=rng)
    values = dark + ink * (bright - dark) + noise
    return (255 * values.clamp(0, 1)).round().to(torch.uint8)
