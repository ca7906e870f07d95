"""Any of torchvision's image classification sets, by name."""

import inspect
import logging
import os
from typing import Any

import numpy as np
import torch
import torchvision
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import Dataset, Subset
from torchvision.transforms.v2.functional import pil_to_tensor

from layershuffle.data.module import ImageData
from layershuffle.data.preprocessing import DecodedImages
from layershuffle.data.sets import TensorImages, labels_of
from layershuffle.errors import UserError
from layershuffle.plurals import counted

logger = logging.getLogger(__name__)

SELECTING = {
    "annotation_level", "background", "compat", "fold", "folds", "image_set", "image_size", "mode", "num_classes",
    "partition", "size", "small", "split", "split_ratio", "target_type", "target_types", "train", "version", "what",
    "year",
}  # fmt: skip
"""All that train_args and test_args may have, as a checkpoint may record them: it selects images, and does no more."""

READING = {
    "CIFAR10", "CIFAR100", "CLEVRClassification", "Caltech101", "Caltech256", "Country211", "DTD", "EMNIST", "EuroSAT",
    "FER2013", "FGVCAircraft", "FashionMNIST", "Flowers102", "Food101", "GTSRB", "INaturalist", "ImageNet",
    "Imagenette", "KMNIST", "LFWPeople", "MNIST", "Omniglot", "OxfordIIITPet", "PCAM", "Places365", "QMNIST",
    "RenderedSST2", "SEMEION", "STL10", "SUN397", "SVHN", "StanfordCars", "USPS",
}  # fmt: skip
"""The sets that a checkpoint may name: without ``download``, torchvision only reads their files."""
HANDED = {"EMNIST", "GTSRB", "KMNIST", "MNIST", "Omniglot", "QMNIST", "RenderedSST2", "SEMEION", "SVHN", "USPS"}
"""The sets of letters, digits and signs, which are others when they are mirrored."""
NEEDED = {
    "Caltech101": ("caltech101",),
    "Caltech256": ("caltech256",),
    "INaturalist": (".",),
    "ImageNet": ("meta.bin", "train", "val"),
}
"""Without these in the folder of a set, torchvision would make folders or unpack archives."""


class TorchvisionImages(ImageData):
    """A classification set of ``torchvision.datasets``: CIFAR10, CIFAR100, FashionMNIST, SVHN, Food101, ...

    Sets that torchvision holds in memory stay uint8 arrays. Others are decoded when they are read.

    Some sets have no official split in torchvision: EuroSAT, Caltech101, Caltech256, SUN397. A random part of each of
    their classes is the test set, the same for every seed. By default the parts are those of the LayerShuffle authors'
    code (their ``utils/parse_config.py`` has EuroSAT and Caltech256), image by image.

    Args:
        dataset: the name of a class in ``torchvision.datasets``.
        num_classes: its number of classes.
        root: the folder of its files.
        download: download the files that are missing, and unpack archives. Without it, files are only read.
        train_args: arguments with which it loads its training images; by default ``train: true`` or ``split: train``.
        test_args: the same for its test images.
        test_fraction: the part of each class that is the test set, if torchvision has no split.
        kwargs: further arguments of ``ImageData``.
    """

    num_classes: int

    def __init__(
        self,
        dataset: str,
        num_classes: int,
        root: str = "data",
        download: bool = False,
        train_args: dict[str, Any] | None = None,
        test_args: dict[str, Any] | None = None,
        test_fraction: float = 0.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset = dataset
        self.num_classes = num_classes
        self.root = root
        self.download = download
        self.train_args = train_args
        self.test_args = test_args
        self.test_fraction = test_fraction
        self._names: list[str] = []

    @property
    def label(self) -> str:
        return self.dataset

    @property
    def has_handed_classes(self) -> bool:
        return self.dataset in HANDED

    @property
    def class_names(self) -> list[str] | None:
        """torchvision's names, after ``setup``."""
        return self._names if len(self._names) == self.num_classes else None

    def test_arguments(self) -> tuple[str, ...]:
        if self._is_unsplit():
            return ("train_args", "test_args", "test_fraction")
        return ("train_args", "test_args")

    def prepare_data(self) -> None:
        """Download the files if ``download`` is set. Lightning calls this in one process only."""
        if self.download:
            self._open(train=True, download=True)
            self._open(train=False, download=True)

    def load(self, train: bool) -> Dataset:
        """The training or test images.

        Raises UserError if the files are not there, torchvision has no such set, it can't be split, or the arguments
        give the same images for training and test.
        """
        images = self._open(train, download=False)
        # torchvision's sets have one of these names for them, or none.
        classes = getattr(images, "classes", getattr(images, "categories", ()))
        # ImageNet's have several names each.
        self._names = [name if isinstance(name, str) else ", ".join(name) for name in classes]

        in_memory = _in_memory(images)
        if in_memory is not None:
            if not self._is_unsplit():
                return in_memory
            return TensorImages(*in_memory.__getitems__(self._part(images, train)))

        # The labels of a set that isn't in memory may be unknown until its images are read.
        if len(classes) > self.num_classes:
            raise UserError(
                f"num_classes is {self.num_classes}, but {self.dataset} has {counted(len(classes), 'class')}"
            )
        decoded = DecodedImages(images, self.image_size, self.unreadable, self.resizing, self.picture_channels)
        if not self._is_unsplit():
            return decoded
        return Subset(decoded, self._part(images, train))

    def _part(self, images: Any, train: bool) -> list[int]:
        """The indices of the images for training, or for testing, of a set without an official split."""
        labels = labels_of(images)
        if labels is None or self.train_args is not None or self.test_args is not None:
            remedy = "give --data.train_args and --data.test_args that select different ones"
            if labels is not None:
                remedy += ", or leave both out"
            raise UserError(f"the training and the test images of {self.dataset} would be the same: {remedy}")
        try:
            from sklearn.model_selection import train_test_split
        except ImportError as error:
            raise UserError(
                f"splitting {self.dataset} needs scikit-learn: pip install 'layershuffle[digits]'"
            ) from error
        try:
            # scikit-learn would take a whole number, such as 2, for a number of images.
            fraction = float(self.test_fraction)
            training, testing = train_test_split(
                range(len(labels)), test_size=fraction, stratify=labels, random_state=0
            )
        except ValueError as error:
            raise UserError(
                f"{self.dataset} can't be split with test_fraction {self.test_fraction}: {error}"
            ) from error
        if train:
            return training
        rank_zero_only(logger.info)(
            f"{self.dataset} has no official split: {len(training)} of its images, the same for every seed, are "
            f"for training and {len(testing)} for testing (--data.test_fraction {self.test_fraction})"
        )
        return testing

    def _class(self) -> Any:
        cls: Any = getattr(torchvision.datasets, self.dataset, None)
        # LSUN unpickles files, which could run anything.
        if not isinstance(cls, type) or self.dataset.startswith("LSUN"):
            raise UserError(f"torchvision has no data set named {self.dataset}")
        return cls

    def _options(self, train: bool) -> dict[str, Any]:
        options = self.train_args if train else self.test_args
        if options is not None:
            return options
        accepted = self._defaults()
        if "train" in accepted:
            return {"train": train}
        if "split" in accepted:
            return {"split": "train" if train else "test"}
        return {}

    def _is_unsplit(self) -> bool:
        """Whether torchvision loads the same images for training and test, with the defaults of its arguments."""
        return self._selecting_arguments(train=True) == self._selecting_arguments(train=False)

    def _selecting_arguments(self, train: bool) -> dict[str, Any]:
        """All arguments that may decide which images are loaded."""
        arguments = self._defaults() | self._options(train)
        return {name: value for name, value in arguments.items() if not name.startswith("target")}

    def _defaults(self) -> dict[str, Any]:
        """The arguments of torchvision's class and of its parents, with their defaults."""
        defaults: dict[str, Any] = {}
        # EMNIST passes ``train`` and ``download`` on to its parent. Defaults of the class itself come last, and win.
        for parent in reversed(self._class().__mro__):
            for parameter in inspect.signature(parent).parameters.values():
                defaults[parameter.name] = parameter.default
        return defaults

    def _open(self, train: bool, download: bool) -> Any:
        cls = self._class()
        options = self._options(train)
        refused = sorted(options.keys() - SELECTING)
        if refused:
            raise UserError(f"train_args and test_args select images: {', '.join(refused)} can't be among them")
        # train_args or test_args may not ask for downloads.
        if "download" in self._defaults():
            options = options | {"download": download}
        needed = [os.path.join(self.root, name) for name in NEEDED.get(self.dataset, ())]
        if not download and not all(map(os.path.exists, needed)):
            raise self._missing(cls)
        # torchvision raises the first two for files that are missing or damaged, and the others for wrong arguments.
        try:
            return cls(self.root, **options)
        except (RuntimeError, OSError) as error:
            if download:
                raise UserError(f"{self.dataset} could not be downloaded: {error}") from error
            raise self._missing(cls) from error
        except (TypeError, ValueError) as error:
            raise UserError(f"torchvision's {self.dataset} can't be opened with {options}: {error}") from error

    def _missing(self, cls: Any) -> UserError:
        """The error that the files of torchvision's class aren't there."""
        return UserError(
            f"{self.dataset} is not in the folder {self.root}: {_missing_files(cls, self.root)}, "
            "or add --data.download=true to fetch it"
        )


def _in_memory(images: Any) -> TensorImages | None:
    """The set's uint8 array as [images, channels, height, width], or None if it has none."""
    data = getattr(images, "data", None)
    labels = getattr(images, "targets", getattr(images, "labels", None))
    if not isinstance(data, (np.ndarray, Tensor)) or labels is None or data.ndim not in (3, 4):
        return None
    # Grey images have no dimension for channels, and those of most sets have it last.
    tensor = torch.as_tensor(data)
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    elif tensor.shape[1] not in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    # The sets differ in layout: compare with the first image that the set itself returns.
    if tensor.dtype != torch.uint8 or not torch.equal(tensor[0], pil_to_tensor(images[0][0])):
        return None
    return TensorImages(tensor.contiguous(), torch.as_tensor(labels, dtype=torch.int64))


def _missing_files(cls: Any, root: str) -> str:
    """What to do about files that aren't there, by name if torchvision's class says which files it looks for."""
    if hasattr(cls, "train_list") and hasattr(cls, "base_folder"):
        files = [name for name, *_ in cls.train_list + cls.test_list]
        if hasattr(cls, "meta"):
            files.append(cls.meta["filename"])
        return f"put {', '.join(files)} into {root}/{cls.base_folder}"
    if isinstance(getattr(cls, "resources", None), list):  # QMNIST's are for each split.
        files = [name.removesuffix(".gz") for name, _ in cls.resources]
        return f"put {', '.join(files)} (not compressed) into {root}/{cls.__name__}/raw"
    return "put its files there as torchvision's documentation says"
