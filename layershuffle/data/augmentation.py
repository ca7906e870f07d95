"""Changes training images at random. What an image becomes depends on the seed, the epoch and the image alone."""

import math
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from layershuffle.data.preprocessing import DEFAULT_RESIZING, DecodedImages, Resizing, replace_unreadable, resize
from layershuffle.errors import UserError, last_line
from layershuffle.orders.order import seeded
from layershuffle.plurals import counted


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed at random, with torchvision.transforms.v2. By default they are not.

    Attributes:
        scale: the smallest and the largest share of an image's area that a random crop shows (RandomResizedCrop). By
            default the centre is shown, as in evaluation.
        padding: without scale, shift the image by up to this share of its side, and mirror what is beyond its edge.
        flip: the probability with which an image is mirrored left to right.
        transforms: transforms of torchvision.transforms.v2 that run after these on each image, uint8 [channels, height,
            width]. They may use no randomness but torch's.
        mixup: the alpha with which the images of a batch are mixed in pairs (arXiv 1710.09412), or 0.
        cutmix: the alpha with which a rectangle of another image is put into each image (arXiv 1905.04899), or 0. If
            mixup is given too, each batch has one of the two at random.
    """

    scale: tuple[float, float] | None = None
    padding: float = 0.0
    flip: float = 0.0
    transforms: list[v2.Transform] = field(default_factory=list)
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.scale and not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augmentation.scale is two shares of an image from 0 to 1, not {list(self.scale)}")
        if not 0 <= self.padding < 1 or not 0 <= self.flip <= 1:
            raise UserError("augmentation.padding is a share from 0 to below 1, and augmentation.flip a probability")
        if not (0 <= self.mixup < math.inf and 0 <= self.cutmix < math.inf):
            raise UserError("augmentation.mixup and augmentation.cutmix are from 0 up")

    @property
    def changes_images(self) -> bool:
        """Whether single images are changed, apart from being mixed with others."""
        return bool(self.scale or self.padding or self.flip or self.transforms)

    @property
    def mirrors(self) -> bool:
        """Whether some images are mirrored, left to right or upside down."""
        if self.flip:
            return True
        waiting = list(self.transforms)
        while waiting:
            transform = waiting.pop()
            # Compose, RandomApply and their like are made of others.
            waiting += getattr(transform, "transforms", ())
            if isinstance(transform, (v2.RandomHorizontalFlip, v2.RandomVerticalFlip)) and transform.p:
                return True
        return False

    def of_image(self, size: int, resizing: Resizing = DEFAULT_RESIZING) -> v2.Compose:
        """What changes one uint8 image [channels, height, width] into one of ``size`` x ``size`` pixels.

        Args:
            size: height and width of the result, in pixels.
            resizing: how to resize and crop. A random crop uses its interpolation alone.
        """
        crop: list[v2.Transform]
        if self.scale:
            crop = [v2.RandomResizedCrop(size, tuple(self.scale), interpolation=resizing.mode)]
        else:
            shift = v2.RandomCrop(size, round(self.padding * size), padding_mode="reflect")
            crop = [v2.Lambda(partial(resize, size=size, resizing=resizing)), shift]
        return v2.Compose([*crop, v2.RandomHorizontalFlip(self.flip), *self.transforms])

    def of_batch(self, num_classes: int) -> v2.Transform | None:
        """What mixes the images of a batch and makes of its labels probabilities [batch, classes], or None."""
        mixers: list[v2.Transform] = []
        if self.mixup:
            mixers.append(v2.MixUp(alpha=self.mixup, num_classes=num_classes))
        if self.cutmix:
            mixers.append(v2.CutMix(alpha=self.cutmix, num_classes=num_classes))
        return v2.RandomChoice(mixers) if mixers else None


Key = tuple[int, ...]
"""Which training image is asked for: (epoch, index), or (epoch, index, how often it came before in this epoch)."""

Item = tuple[Tensor, Tensor] | None
"""An image and its label, or None if it can't be read."""


class Augmented(Subset):
    """Training images that are changed at random. They are asked for by (epoch, index).

    What follows the index, such as how often the image came before in this epoch, changes it in another way too.

    Images of varying size are decoded whole. Where all images have one size, their crops are no larger than that: the
    device enlarges them.

    Args:
        images: the training set.
        augmentation: how to change them.
        image_size: height and width that the model takes, in pixels.
        seed: the seed of the run.
        resizing: how to resize and crop.
    """

    def __init__(
        self,
        images: Dataset,
        augmentation: Augmentation,
        image_size: int,
        seed: int,
        resizing: Resizing = DEFAULT_RESIZING,
    ) -> None:
        # The index in the whole set is what an image's randomness depends on, so nested parts are resolved into one.
        indices = list(range(len(images)))  # type: ignore[arg-type]
        while isinstance(images, Subset):
            indices = [images.indices[index] for index in indices]
            images = images.dataset

        # The validation images may be a part of the same set, and on another device.
        source = copy(images)
        if isinstance(source, DecodedImages):
            source.size = None
        else:
            image_size = min(image_size, *source[0][0].shape[-2:])
        super().__init__(source, indices)

        self.seed = seed
        self.transform = augmentation.of_image(image_size, resizing)
        self.crop, *others = self.transform.transforms
        if isinstance(self.crop, v2.RandomResizedCrop):
            # Its second half, for images of which only the crop is read.
            fit = partial(F.resize, size=list(self.crop.size), interpolation=self.crop.interpolation)
            self.of_region = v2.Compose([v2.Lambda(fit), *others])

    def __getitem__(self, key: Key) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([key])
        return images[0], labels[0]

    def __getitems__(self, keys: list[Key]) -> list[Tensor]:  # type: ignore[override]
        """A batch: uint8 images [batch, channels, size, size] and the labels of each."""
        # With overfit_batches, Lightning asks for images by their indices alone: they are changed once and for all, as
        # those of the first epoch.
        keys = [(0, key) if isinstance(key, int) else key for key in keys]
        # An image has the same randomness in every part of the set, so its index in the whole set counts.
        keys = [(epoch, self.indices[index], *times) for epoch, index, *times in keys]
        # Seeding for each image must not change the random numbers of whoever asks for the batch. GPUs are left out: to
        # save their state, Python would wait for them.
        with torch.random.fork_rng(devices=[]):
            if isinstance(self.crop, v2.RandomResizedCrop) and hasattr(self.dataset, "regions"):
                items = self._read_crops(self.crop, keys)
                change = self.of_region
            else:
                items = self._read_wholes(keys)
                change = self.transform

            changed: list[Item] = []
            for key, item in zip(keys, items):
                if item is None:
                    changed.append(None)
                    continue
                image, label = item
                self._seed("augmentation", *key)
                changed.append((self._changed(image, change), label))
        return replace_unreadable(changed)

    def _changed(self, image: Tensor, change: v2.Compose) -> Tensor:
        """The image after the changes; raises UserError if they can't be made in as many channels as it has."""
        try:
            return change(image)
        except (TypeError, ValueError) as error:
            if len(image) in (1, 3):
                raise
            raise UserError(
                f"model.augmentation.transforms can't change images of {counted(len(image), 'channel')} "
                f"({last_line(error)}): leave out those that change colours, such as RandAugment"
            ) from error

    def _read_crops(self, crop: v2.RandomResizedCrop, keys: list[Key]) -> Iterable[Item]:
        """The random crops of the images. Where they lie is decided first, so that nothing else is read."""
        source: Any = self.dataset
        indices = [key[1] for key in keys]
        # torchvision chooses a crop by the image's shape alone. A tensor on "meta" has a shape and no pixels.
        boxes = []
        for key, (height, width) in zip(keys, source.shapes[indices].tolist()):
            self._seed("crop", *key)
            box = crop.make_params([torch.empty(3, height, width, device="meta")])
            boxes.append((box["top"], box["left"], box["height"], box["width"]))
        return list(zip(source.regions(indices, boxes), source.labels[indices]))

    def _read_wholes(self, keys: list[Key]) -> Iterable[Item]:
        """The images before they are changed; one by one, unless the set reads batches."""
        source: Any = self.dataset
        indices = [key[1] for key in keys]
        if hasattr(source, "__getitems__"):
            images, labels = source.__getitems__(indices)
            return list(zip(images, labels))
        # One after the other: a batch of whole photographs would take gigabytes.
        return (source[index] for index in indices)

    def _seed(self, *key: int | str) -> None:
        """Seed the generator of the transforms, so that the key alone decides the numbers that they draw."""
        # torch.manual_seed would also seed the GPUs, which takes longer than all the rest.
        number = seeded(self.seed, *key).random()
        torch.default_generator.manual_seed(int(number * 2**53))
