"""The LightningDataModule behind every data set: splits, loaders, and how a run records its data."""

import importlib
import inspect
import json
import os
import re
import signal
import textwrap
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from layershuffle.data.augmentation import Augmented
from layershuffle.data.preprocessing import DecodedImages, Preprocess, replace_unreadable, skip_unreadable
from layershuffle.data.samplers import TrainingSampler, evaluation_batches
from layershuffle.errors import UserError
from layershuffle.orders.order import seeded


class TensorImages(Dataset):
    """Images that fit in memory: uint8 [images, channels, height, width] and int64 labels [images], on any device."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def move(self, device: torch.device) -> None:
        """Move the images to ``device``, where batches are then taken, also those of Subsets of this set."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch. Only the indices are copied to the device, without waiting for it."""
        index = torch.tensor(indices, dtype=torch.int64, pin_memory=self.images.is_cuda)
        index = index.to(self.images.device, non_blocking=True)
        return self.images[index], self.labels[index]


_LABELS = ("targets", "labels", "y", "_labels")
"""What data sets, also torchvision's, call the labels of all their images."""
MOST_CLASSES = 50
"""The counts of more classes than this are summed up when training begins."""


def labels_of(images: Any) -> Tensor | None:
    """The labels of a data set, int64 [images], without reading its images; None if it doesn't tell them."""
    if isinstance(images, Subset):
        labels = labels_of(images.dataset)
        return None if labels is None else labels[torch.tensor(images.indices, dtype=torch.int64)]
    if isinstance(images, DecodedImages):
        return labels_of(images.images)
    labels = next((getattr(images, name) for name in _LABELS if hasattr(images, name)), None)
    try:
        return None if labels is None else torch.as_tensor(labels, dtype=torch.int64).flatten()
    except (TypeError, ValueError, RuntimeError):
        return None


class ImageData(pl.LightningDataModule):
    """Training, validation and test images with labels from 0 to ``num_classes - 1``.

    A subclass implements ``load`` and sets ``num_classes``. It keeps each argument of its ``__init__``, a plain value,
    as an attribute of the same name, so that checkpoints can record it, and passes other arguments on as ``**kwargs``.

    Batches are uint8 images [batch, channels, height, width] and int64 labels [batch]. ``Preprocess`` resizes and
    normalises them on the device.

    Args:
        batch_size: images per training step and process.
        eval_batch_size: images per batch in validation and evaluation, of all processes together; by default twice
            batch_size.
        val_fraction: the part of the training images held out to validate on. With 0 the test images are used, as
            in the LayerShuffle authors' code.
        train_images: use only this many training images, chosen at random. The validation images are a part of them.
        test_images: use only this many test images, chosen at random.
        split_seed: seed of these random choices and of nothing else.
        workers: processes that read images, and change them if that is asked for; by default one per core up to 16, and
            none for images in memory that are not changed.
        on_device: whether a set in memory is kept on the device that trains or evaluates, so that batches need no
            workers and no copies from the host. The batches are the same either way. "auto" does so on a CUDA device
            that has ten times as much free memory as the set takes, but not with images that are changed at random:
            their workers are faster.
        unreadable: how many images may be broken. Broken images are named, left out of evaluations, and replaced by
            others of the same batch in training. One more than this ends the run.
        image_size: height and width that images of varying size are resized and cropped to when read, in pixels. The
            commands set it to what the model takes.
        balanced: whether every class comes equally often in training, however many images it has. Each epoch draws as
            many images as there are, with replacement, so that those of a small class come several times.
        crop_pct: images of another size than image_size are resized to image_size / crop_pct, and the centre is
            cropped. By default, this and the next two are as in the paper (1, bilinear, center), or for a pretrained
            timm model that is studied as it is, as timm has them.
        interpolation: how they are resized.
        crop_mode: whether the shorter side is resized (center), or the image is squashed to a square.
    """

    if TYPE_CHECKING:
        num_classes: int
    else:

        @cached_property
        def num_classes(self) -> int:
            """How many classes there are: subclasses set it."""
            raise UserError(f"{type(self).__name__} doesn't say how many classes there are: set num_classes in it")

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        val_fraction: float = 0.1,
        train_images: int | None = None,
        test_images: int | None = None,
        split_seed: int = 0,
        workers: int | None = None,
        unreadable: int = 0,
        image_size: int = 224,
        on_device: bool | Literal["auto"] = "auto",
        crop_pct: float | None = None,
        interpolation: Literal["bilinear", "bicubic"] | None = None,
        crop_mode: Literal["center", "squash"] | None = None,
        balanced: bool = False,
    ) -> None:
        super().__init__()
        if batch_size < 1 or (eval_batch_size or 1) < 1:
            raise UserError("a batch has at least one image")
        if not 0 <= val_fraction < 1:
            raise UserError(f"val_fraction is a fraction from 0 to below 1, not {val_fraction}")
        if crop_pct is not None and not 0 < crop_pct <= 1:
            raise UserError(f"crop_pct is a fraction above 0 and at most 1, not {crop_pct}")
        self.batch_size, self.eval_batch_size, self.val_fraction = batch_size, eval_batch_size, val_fraction
        self.train_images, self.test_images, self.split_seed = train_images, test_images, split_seed
        self.workers, self.unreadable, self.image_size, self.on_device = workers, unreadable, image_size, on_device
        self.crop_pct, self.interpolation, self.crop_mode = crop_pct, interpolation, crop_mode
        self.balanced = balanced
        self.sets: dict[str, Dataset] = {}
        self.device, self.ranks, self.rank = torch.device("cpu"), 1, 0

    def load(self, train: bool) -> Dataset:
        """The whole training or test set, as a map-style Dataset of (uint8 [channels, height, width], label)."""
        raise NotImplementedError

    def load_validation(self) -> Dataset | None:
        """The validation images if the set has some of its own; by default None, so that they are held out."""
        return None

    @property
    def label(self) -> str:
        """The name of the data set in tables and plots."""
        return type(self).__name__

    @property
    def class_names(self) -> list[str] | None:
        """The names of the classes, in the sequence of their labels; None if the set doesn't know them.

        Some sets only know them after ``setup``.
        """
        return None

    @property
    def evaluation_batch(self) -> int:
        """Images per batch in validation and evaluation, of all processes together."""
        return self.eval_batch_size or 2 * self.batch_size

    def setup(self, stage: str | None = None) -> None:
        """Load only the test images if ``stage`` is "test", otherwise all images."""
        self.config()  # a class that can't be recorded fails now rather than when the first checkpoint is saved
        if "test" not in self.sets:
            self.sets["test"] = self._chosen(self.load(train=False), self.test_images, "test")
        if stage != "test" and "train" not in self.sets:
            train = self._chosen(self.load(train=True), self.train_images, "train")
            val = self.load_validation()
            if val is None and self.val_fraction:
                held_out = max(1, round(len(train) * self.val_fraction))  # type: ignore[arg-type]
                val, train = split_images(train, held_out, self.split_seed)
            if len(train) == 0:  # type: ignore[arg-type]
                raise UserError(f"val_fraction {self.val_fraction} leaves no image to train on: lower it")
            self.sets |= {"train": train, "val": self.sets["test"] if val is None else val}

    def describe(self) -> str:
        """Lines that say what ``setup`` found: how many images of each split and class, and what validates."""
        kinds = {"training": "train", "validation": "val", "test": "test"}
        sizes = ", ".join(f"{len(self.sets[split]):,} {kind}" for kind, split in kinds.items())  # type: ignore[arg-type]
        lines = [f"{self.label}: {self.num_classes:,} classes; {sizes} images"]
        train, val = self.sets["train"], self.sets["val"]
        if val is self.sets["test"]:
            lines[0] += "; the test images also select the checkpoint"
        elif isinstance(train, Subset) and isinstance(val, Subset) and train.dataset is val.dataset:
            lines[0] += "; the validation images are held out from training"
        if self.balanced:
            lines[0] += "; every class comes equally often in training"
        labels = [labels_of(self.sets[split]) for split in kinds.values()]
        counts = [found.bincount(minlength=self.num_classes).tolist() for found in labels if found is not None]
        names = self.class_names or [str(label) for label in range(self.num_classes)]
        if len(counts) < len(kinds) or any(len(count) != len(names) for count in counts):
            return lines[0]
        if len(names) <= MOST_CLASSES:
            each = [f"{name} {'/'.join(map(str, count))}" for name, count in zip(names, zip(*counts))]
            lines.append(f"images of each class ({'/'.join(kinds)}): {', '.join(each)}")
        else:
            spans = [dict.fromkeys((f"{min(count):,}", f"{max(count):,}")) for count in counts]
            ranges = [f"{' to '.join(span)} {kind}" for kind, span in zip(kinds, spans)]
            fewest = names[counts[0].index(min(counts[0]))]
            lines.append(f"images of each class: {', '.join(ranges)}; {fewest} has the fewest training images")
        return "\n".join(line for text in lines for line in textwrap.wrap(text, 80, subsequent_indent="  "))

    def prepare_for(self, size: int, mean: Sequence[float], std: Sequence[float], *resizing: Any) -> Preprocess:
        """Read images for a model that takes them like this, and return what makes its input of them.

        The arguments are those of ``Preprocess``, but the set's own crop_pct, interpolation and crop_mode come first.
        """
        self.image_size = size
        for name, own, wanted in zip(("crop_pct", "interpolation", "crop_mode"), self.resizing, resizing):
            setattr(self, name, wanted if own is None else own)
        return Preprocess(size, mean, std, *self.resizing)

    @property
    def resizing(self) -> tuple[float | None, str | None, str | None]:
        """The further arguments of ``preprocessing.resize``."""
        return self.crop_pct, self.interpolation, self.crop_mode

    def loader(self, split: Literal["val", "test"], batch_size: int | None = None) -> DataLoader:
        """Every validation or test image once and in order, however many processes share them.

        A batch has ``batch_size`` images of all processes together, by default ``evaluation_batch``.
        """
        images, batch_size = self.sets[split], batch_size or self.evaluation_batch
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (self.ranks, self.rank)
        if ranks == 1:
            return self._loader(images, batch_size)
        if self.trainer and self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError("ImageData shares out the images itself: give the Trainer use_distributed_sampler=False")
        parts = evaluation_batches(len(images), batch_size, ranks, rank)  # type: ignore[arg-type]
        return self._loader(images, 1, batch_sampler=parts)

    def config(self) -> dict[str, Any]:
        """What ``from_config`` needs: the arguments "args", and "class", the name or, if not ours, the import path."""
        cls = type(self)
        try:
            args = {name: getattr(self, name) for name in _arguments(cls)}
            json.dumps(args)  # fails where a checkpoint would save an object that evaluation refuses to load
        except (AttributeError, TypeError) as error:
            raise UserError(
                f"checkpoints can't record the arguments of {cls.__name__} ({error}): keep each as an attribute of the "
                "same name, and make it a number, a string, or a list or dictionary of these"
            ) from error
        ours = cls.__module__.startswith("layershuffle.")
        return {"class": cls.__qualname__ if ours else _import_path(cls), "args": args}

    def train_dataloader(self) -> DataLoader:
        """Batches shuffled by the run's seed and the epoch alone, so that a resumed run continues with the same ones.

        An incomplete last batch is left out, so that all steps are alike. So are images that can't be divided evenly
        between the processes: none is read twice.
        """
        train, module = self.sets["train"], getattr(self.trainer, "lightning_module", None)
        seed, augmentation = (
            getattr(module, "seed", torch.initial_seed() % 2**32),
            getattr(module, "augmentation", None),
        )
        if augmentation and augmentation.changes_images:
            train = Augmented(train, augmentation, self.image_size, seed, *self.resizing)
        labels = self.training_labels("data.balanced") if self.balanced else None
        sampler = TrainingSampler(train, self.batch_size, seed, self.trainer, labels)  # type: ignore[arg-type]
        return self._loader(train, self.batch_size, sampler=sampler, drop_last=len(sampler) >= self.batch_size)

    def training_labels(self, option: str) -> Tensor:
        """The labels of the training images, int64 [images]; a UserError names the option that needs them."""
        labels = labels_of(self.sets["train"])
        if labels is None:
            raise UserError(
                f"--{option} needs the labels of all training images, which {self.label} doesn't tell without reading "
                "them: leave it out, or keep them as an attribute targets of the data set"
            )
        return labels.cpu()

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")

    def parts(self, split: str, fraction: float, seed: int) -> tuple[DataLoader, DataLoader]:
        """Split the "val" or "test" images at random into a ``fraction`` to search on and the rest to report on."""
        images: Any = self.sets[split]
        total, count = len(images), round(len(images) * fraction)
        if not 0 < count < total:
            raise UserError(
                f"a search needs images to search on and others to report on: {fraction} of {total} leaves none for one"
            )
        one, other = (self._loader(part, self.evaluation_batch) for part in split_images(images, count, seed))
        return one, other

    def _loader(self, images: Dataset, batch_size: int, **options: Any) -> DataLoader:
        source, workers, on_host, augmented = images, self.workers, True, isinstance(images, Augmented)
        while isinstance(source, Subset):
            source = source.dataset
        if isinstance(source, TensorImages):
            # Workers change the images, which they can't on the device.
            home = torch.device("cpu") if augmented and self.on_device is not True else self._home(source)
            source.move(home)
            on_host = home.type == "cpu"
            workers = 0 if not on_host else workers if augmented else workers or 0
        elif self.on_device is True:
            raise UserError(f"{self.label} is read from disk image by image, not held in memory: leave on_device out")
        if workers is None:
            workers = min(16, len(os.sched_getaffinity(0)))
        collate = replace_unreadable if images is self.sets.get("train") else skip_unreadable
        return DataLoader(
            images,
            batch_size,
            collate_fn=tuple if augmented or hasattr(source, "__getitems__") else collate,
            num_workers=workers,
            worker_init_fn=_ignore_interrupt,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and on_host,
            **options,
        )

    def _home(self, images: TensorImages) -> torch.device:
        """The device to keep ``images`` on: the one that computes, if that is wanted and they fit."""
        device = self.trainer.strategy.root_device if self.trainer else self.device
        if images.images.device == device:
            return device
        needed = images.images.nbytes + images.labels.nbytes
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
        if self.on_device == "auto":
            return device if free and 10 * needed <= free else torch.device("cpu")
        if self.on_device and free is not None and needed > free:
            raise UserError(
                f"the images of {self.label} take {needed / 1e9:.1f} GB and the device has {free / 1e9:.1f} GB free: "
                "leave on_device out"
            )
        return device if self.on_device else torch.device("cpu")

    def _chosen(self, images: Dataset, count: int | None, name: str) -> Dataset:
        total = len(images)  # type: ignore[arg-type]
        if total == 0:
            raise UserError(f"the {name} set is empty")
        if isinstance(images, TensorImages) and int(images.labels.max()) >= self.num_classes:
            raise UserError(
                f"num_classes is {self.num_classes}, but the {name} set has labels up to {int(images.labels.max())}"
            )
        if count is None:
            return images
        if not 1 <= count <= total:
            raise UserError(
                f"{name}_images is {count}, but the {name} set has {total} images: choose from 1 to {total}"
            )
        return split_images(images, count, self.split_seed)[0]


def from_config(config: dict[str, Any], trusted: str | None = None) -> ImageData:
    """Make a data module from what ``ImageData.config`` returned.

    A checkpoint may come from anyone. So no module is imported because a checkpoint names it, nothing is downloaded,
    and the number of workers is the default.

    Args:
        config: the class and its arguments.
        trusted: the import path of a class, if the caller named it. It is imported if it is the one in ``config``.

    Raises:
        UserError: if the class is unknown or doesn't take these arguments.
    """
    name = config.get("class") if isinstance(config, dict) else None
    if trusted and trusted == name:
        try:
            importlib.import_module(trusted.rpartition(".")[0])
        except ImportError as error:
            raise UserError(f"{trusted} can't be imported ({error}): run this in the folder that holds it") from error
    known = {key: cls for cls in _subclasses(ImageData) for key in (cls.__name__, _import_path(cls))}
    if isinstance(name, str) and name not in known and name != trusted and re.fullmatch(r"\w+(\.\w+)+", name):
        raise UserError(
            f"the data set it was trained on, {name}, is not known here: if you trust its code, add --data {name}"
        )
    try:
        cls, args = known[name], dict(config["args"])  # type: ignore[index]
        return cls(**args | {"workers": None} | ({"download": False} if "download" in args else {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the data set it was trained on is not known here ({type(error).__name__}: {str(error)[:200]}): say which "
            "to use with --data"
        ) from error


def _ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which the terminal sends to workers too, to the process that reads from them: it may save first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _subclasses(cls: type[ImageData]) -> list[type[ImageData]]:
    children = cls.__subclasses__()
    return children + [sub for child in children for sub in _subclasses(child)]


def _import_path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _arguments(cls: type) -> list[str]:
    """The named arguments of a class, and of its parents as long as it passes ``**kwargs`` on to them."""
    found: list[str] = []
    for parent in cls.__mro__:  # ImageData takes no **kwargs, so that the loop ends there at the latest.
        kinds = {parameter.name: parameter.kind for parameter in inspect.signature(parent).parameters.values()}
        named = [name for name, kind in kinds.items() if kind is not inspect.Parameter.VAR_KEYWORD]
        found += [name for name in named if name not in found]
        if len(named) == len(kinds):
            break
    return found


def split_images(images: Dataset, count: int, seed: int) -> tuple[Subset, Subset]:
    """``count`` random images and the rest, both in their original sequence."""
    rng = seeded(seed, "split")
    shuffled = sorted(range(len(images)), key=lambda _: rng.random())  # type: ignore[arg-type]
    return Subset(images, sorted(shuffled[:count])), Subset(images, sorted(shuffled[count:]))
