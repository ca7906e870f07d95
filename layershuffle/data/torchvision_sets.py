"""Any of torchvision's image classification sets, by name."""

import inspect
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import pil_to_tensor

from layershuffle.data.module import ImageData, TensorImages
from layershuffle.data.preprocessing import DecodedImages
from layershuffle.errors import UserError


class TorchvisionImages(ImageData):
    """A classification set of ``torchvision.datasets``: CIFAR10, CIFAR100, FashionMNIST, SVHN, Food101, ...

    Sets that torchvision holds in memory stay uint8 arrays. Others are decoded when they are read.

    Args:
        dataset: the name of a class in ``torchvision.datasets``.
        num_classes: its number of classes.
        root: the folder of its files.
        download: download the files that are missing.
        train_args: arguments with which it loads its training images; by default ``train: true`` or ``split: train``.
        test_args: the same for its test images.
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
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dataset, self.num_classes, self.root, self.download = dataset, num_classes, root, download
        self.train_args, self.test_args = train_args, test_args

    @property
    def label(self) -> str:
        return self.dataset

    def prepare_data(self) -> None:
        """Download the files if ``download`` is set. Lightning calls this in one process only."""
        if self.download:
            self._open(train=True, download=True)
            self._open(train=False, download=True)

    def load(self, train: bool) -> Dataset:
        """Raises UserError if the files are not there, or torchvision has no such set."""
        images = self._open(train, download=False)
        in_memory = _in_memory(images)
        if in_memory is None and len(getattr(images, "classes", ())) > self.num_classes:
            raise UserError(f"num_classes is {self.num_classes}, but {self.dataset} has {len(images.classes)} classes")
        return in_memory or DecodedImages(images, self.image_size, self.unreadable)

    def _open(self, train: bool, download: bool) -> Any:
        cls: Any = getattr(torchvision.datasets, self.dataset, None)
        if not isinstance(cls, type) or self.dataset.startswith("LSUN"):  # LSUN unpickles files
            raise UserError(f"torchvision has no data set named {self.dataset}")
        accepted = inspect.signature(cls).parameters
        options = self.train_args if train else self.test_args
        if options is None:
            options = {"train": train} if "train" in accepted else {"split": "train" if train else "test"}
        if "download" in accepted:  # a checkpoint's train_args or test_args may not ask for downloads
            options = options | {"download": download}
        try:
            return cls(self.root, **options)
        except (RuntimeError, OSError) as error:
            if download:
                raise UserError(f"{self.dataset} could not be downloaded: {error}") from error
            raise UserError(
                f"{self.dataset} is not in the folder {self.root}: {_wanted(cls, self.root)}, "
                "or add --data.download=true to fetch it"
            ) from error
        except (TypeError, ValueError) as error:
            raise UserError(f"torchvision's {self.dataset} can't be opened with {options}: {error}") from error


def _in_memory(images: Any) -> TensorImages | None:
    """The set's uint8 array as [images, channels, height, width], or None if it has none."""
    data, labels = getattr(images, "data", None), getattr(images, "targets", getattr(images, "labels", None))
    if not isinstance(data, (np.ndarray, Tensor)) or labels is None or data.ndim not in (3, 4):
        return None
    tensor = torch.as_tensor(data)
    if tensor.ndim == 3:
        tensor = tensor.unsqueeze(1)
    elif tensor.shape[1] not in (1, 3):
        tensor = tensor.permute(0, 3, 1, 2)
    # The sets differ in layout: compare with the first image that the set itself returns.
    if tensor.dtype != torch.uint8 or not torch.equal(tensor[0], pil_to_tensor(images[0][0])):
        return None
    return TensorImages(tensor.contiguous(), torch.as_tensor(labels, dtype=torch.int64))


def _wanted(cls: Any, root: str) -> str:
    """Which files to put where, if torchvision's class says which files it looks for."""
    if hasattr(cls, "train_list") and hasattr(cls, "base_folder"):
        files = [entry[0] for entry in cls.train_list + cls.test_list]
        files += [cls.meta["filename"]] if hasattr(cls, "meta") else []
        return f"put {', '.join(files)} into {root}/{cls.base_folder}"
    if hasattr(cls, "resources"):
        files = [name.removesuffix(".gz") for name, _ in cls.resources]
        return f"put {', '.join(files)} (not compressed) into {root}/{cls.__name__}/raw"
    return "put its files there as torchvision's documentation says"
