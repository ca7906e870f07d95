"""Images that are decoded as they are read: large ones, broken ones and bombs among them."""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torchvision.transforms.v2 import functional as F

from layershuffle.errors import UserError

MAX_PIXELS = 100_000_000
"""A larger image is taken for a bomb; the largest of ImageNet-1k has 17 million."""


class DecodedImages(Dataset):
    """A data set of (PIL image, label) whose images are made RGB, resized and centre cropped when read.

    Args:
        images: such a data set; if it has ``samples``, (path, label) pairs, a broken image is named by its path.
        size: height and width of the result, in pixels.
        unreadable: how many images may be broken. Up to so many are named on stderr and None in their place; one more
            is a UserError.
    """

    def __init__(self, images: Dataset, size: int, unreadable: int = 0) -> None:
        self.images, self.size, self.unreadable = images, size, unreadable
        # Shared by the processes that read, so that an image counts once however often it comes.
        self.broken = torch.zeros(len(images), dtype=torch.bool).share_memory_()  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, at: int) -> tuple[Tensor, int] | None:
        try:
            return self.decode(at)
        except UserError as error:
            if not self.broken[at]:
                self.broken[at] = True
                count = int(self.broken.sum())
                if count > self.unreadable:
                    raise UserError(
                        f"{error}, and the {count - 1} named before" if count > 1 else str(error)
                    ) from error
                print(f"{error}: {count} of at most {self.unreadable}", file=sys.stderr)
            return None

    def decode(self, at: int) -> tuple[Tensor, int]:
        """The image uint8 [3, size, size] and its label; raises UserError, which names it, if it is broken."""
        try:
            image, label = self.images[at]
            image = F.center_crop(F.resize(image.convert("RGB"), [self.size]), [self.size, self.size])
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            name = self.images.samples[at][0] if hasattr(self.images, "samples") else f"image {at}"
            raise UserError(f"{name} can't be read as an image ({error}): replace or remove it") from error
        return F.pil_to_tensor(image), label


def readable(batch: Sequence[tuple[Tensor, int] | None]) -> list[Tensor]:
    """A batch of those that could be read: uint8 [batch, 3, size, size] and int64 labels [batch]."""
    found = [item for item in batch if item is not None]
    return default_collate(found) if found else [torch.empty(0, 3, 1, 1, dtype=torch.uint8), torch.empty(0).long()]


def filled(batch: Sequence[tuple[Tensor, int] | None]) -> list[Tensor]:
    """The same for training, where others of the batch take the place of what couldn't be read: steps stay alike."""
    found = [item for item in batch if item is not None]
    if not found:
        raise UserError(f"none of the {len(batch)} images of a batch can be read: is their disk still there?")
    return default_collate([found[at % len(found)] for at in range(len(batch))])


def open_image(path: str | Path) -> Image.Image:
    """Open an image, whose size is in its header, and decode it only then; raises ValueError if it is too large."""
    with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,}")
        return image.convert("RGB")
