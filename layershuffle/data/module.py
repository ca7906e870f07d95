"""The LightningDataModule behind every data set: splits, loaders, and how a run records its data."""

import inspect
import os
from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from layershuffle.data.decoding import filled, readable
from layershuffle.data.samplers import EvaluationBatches, TrainingSampler
from layershuffle.errors import UserError
from layershuffle.orders.order import seeded


class TensorImages(Dataset):
    """Images that fit in memory: uint8 [images, channels, height, width] and int64 labels [images], on any device."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def move(self, device: torch.device) -> None:
        """To ``device``, where batches are then taken; what is made of this set, such as a Subset, moves with it."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        return self.images[at], self.labels[at]

    def __getitems__(self, at: list[int]) -> tuple[Tensor, Tensor]:
        """A batch; all that is copied to another device is the indices, without waiting for it."""
        index = torch.tensor(at, dtype=torch.int64)
        if self.images.is_cuda:
            index = index.pin_memory()
        index = index.to(self.images.device, non_blocking=True)
        return self.images[index], self.labels[index]


class ImageData(pl.LightningDataModule):
    """Training, validation and test images with labels from 0 to ``num_classes - 1``.

    A subclass implements ``load`` and says how many classes there are. Batches are uint8 images [batch,
    channels, height, width] and int64 labels [batch]; resizing and normalising are up to ``Preprocess``.

    Args:
        batch_size: images per training step and process.
        eval_batch_size: images per batch in validation and evaluation, of all processes together; by default twice
            batch_size.
        val_fraction: the part of the training images held out to validate on. With 0 the test images serve, as in
            the LayerShuffle authors' code.
        train_images: use only so many training images, chosen at random; the validation images come out of these.
        test_images: use only so many test images, chosen at random.
        split_seed: decides all those choices, and nothing else.
        workers: processes that read images; by default none for sets in memory, else one per core up to 16.
        on_device: whether a set in memory lives on the device that trains or evaluates, where batches are then taken
            without workers or copies from the host; they are the same either way. "auto": on a CUDA device that has
            ten times as much free memory as the set takes.
        unreadable: how many images may be broken; they are named, left out of what is evaluated, and replaced by others
            of the batch in training. One more ends the run.
        image_size: height and width that images of varying size are resized and cropped to when read, in pixels.
            train.py and evaluate.py set it to what the model takes.
    """

    num_classes: int

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
    ) -> None:
        super().__init__()
        if batch_size < 1 or (eval_batch_size or 1) < 1:
            raise UserError("a batch has at least one image")
        if not 0 <= val_fraction < 1:
            raise UserError(f"val_fraction is a fraction from 0 to below 1, not {val_fraction}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.val_fraction = val_fraction
        self.train_images = train_images
        self.test_images = test_images
        self.split_seed = split_seed
        self.workers = workers
        self.unreadable = unreadable
        self.image_size = image_size
        self.on_device = on_device
        self.sets: dict[str, Dataset] = {}
        # Where no trainer says which device the batches go to, how many processes share them, and which this one is.
        self.device, self.ranks, self.rank = torch.device("cpu"), 1, 0

    def load(self, train: bool) -> Dataset:
        """The whole training or test set, as a map-style Dataset of (uint8 [channels, height, width], label)."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        """What tables and plots call it."""
        return type(self).__name__

    @property
    def evaluation_batch(self) -> int:
        """Images per batch in validation and evaluation, of all processes together."""
        return self.eval_batch_size or 2 * self.batch_size

    def setup(self, stage: str | None = None) -> None:
        """Load what ``stage`` needs: "test" only the test images, any other stage all of them."""
        if "test" not in self.sets:
            self.sets["test"] = self._chosen(self.load(train=False), self.test_images, "test")
        if stage != "test" and "train" not in self.sets:
            train = self._chosen(self.load(train=True), self.train_images, "train")
            held_out = round(len(train) * self.val_fraction)  # type: ignore[arg-type]
            if held_out:
                val, train = _split(train, held_out, self.split_seed)
            if len(train) == 0:  # type: ignore[arg-type]
                raise UserError(f"val_fraction {self.val_fraction} leaves no image to train on: lower it")
            self.sets |= {"train": train, "val": val if held_out else self.sets["test"]}

    def prepare_for(self, image_size: int, device: torch.device, ranks: int = 1, rank: int = 0) -> None:
        """Say what a trainer would: the model's image size in pixels, its device, and the processes that share it."""
        self.image_size, self.device, self.ranks, self.rank = image_size, device, ranks, rank

    def loader(self, split: Literal["val", "test"], batch_size: int | None = None) -> DataLoader:
        """Every validation or test image once and in order, however many processes share them.

        Args:
            split: which images.
            batch_size: images per batch of all processes together; by default ``evaluation_batch``.
        """
        images, batch_size = self.sets[split], batch_size or self.evaluation_batch
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (self.ranks, self.rank)
        if ranks == 1:
            return self._loader(images, batch_size)
        if self.trainer and self.trainer._accelerator_connector.use_distributed_sampler:
            raise UserError("ImageData shares out the images itself: give the Trainer use_distributed_sampler=False")
        parts = EvaluationBatches(len(images), batch_size, ranks, rank)  # type: ignore[arg-type]
        return self._loader(images, 1, batch_sampler=parts)

    def config(self) -> dict[str, Any]:
        """The class and the arguments that make this module again, see ``from_config``."""
        return {"class": type(self).__name__, "args": {name: getattr(self, name) for name in _arguments(type(self))}}

    def train_dataloader(self) -> DataLoader:
        """Shuffled by the run's seed and the epoch alone, so that a resumed run goes on with the same batches.

        An incomplete last batch is left out, so that all steps are alike, and so are images that would leave processes
        with unequal numbers: none is read twice.
        """
        train = self.sets["train"]
        seed = getattr(getattr(self.trainer, "lightning_module", None), "seed", torch.initial_seed() % 2**32)
        sampler = TrainingSampler(train, self.batch_size, seed, self.trainer)  # type: ignore[arg-type]
        return self._loader(train, self.batch_size, sampler=sampler, drop_last=len(sampler) >= self.batch_size)

    def val_dataloader(self) -> DataLoader:
        """Every validation image once; see ``loader``."""
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        """Every test image once; see ``loader``."""
        return self.loader("test")

    def parts(self, split: str, fraction: float, seed: int) -> tuple[DataLoader, DataLoader]:
        """A random ``fraction`` of the "val" or "test" images, and the others, to search on and report on.

        Raises:
            UserError: if either would be empty.
        """
        images = self.sets[split]
        total = len(images)  # type: ignore[arg-type]
        count = round(total * fraction)
        if not 0 < count < total:
            raise UserError(
                f"a search needs images to search on and others to report on: {fraction} of {total} leaves none for one"
            )
        one, other = (self._loader(part, self.evaluation_batch) for part in _split(images, count, seed))
        return one, other

    def _loader(self, images: Dataset, batch_size: int, **options: Any) -> DataLoader:
        source = _unwrapped(images)
        workers, on_host = self.workers, True
        if isinstance(source, TensorImages):
            home = self._home(source)
            source.move(home)
            on_host = home.type == "cpu"
            workers = (workers or 0) if on_host else 0
        elif self.on_device is True:
            raise UserError(f"{self.label} is read from disk image by image, not held in memory: leave on_device out")
        if workers is None:
            workers = min(16, len(os.sched_getaffinity(0)))
        collate = filled if images is self.sets.get("train") else readable
        return DataLoader(
            images,
            batch_size,
            collate_fn=_as_is if hasattr(source, "__getitems__") else collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and on_host,
            **options,
        )

    def _home(self, images: TensorImages) -> torch.device:
        """Where ``images`` belong: on the device that is to compute, if that is wanted and they fit."""
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
            raise UserError(f"{name}_images is {count}, but the {name} set has {total} images")
        return _split(images, count, self.split_seed)[0]


def from_config(config: dict[str, Any]) -> ImageData:
    """Make a data module from what ``ImageData.config`` returned.

    Raises:
        UserError: (a ValueError) if its class isn't one of ImageData's imported subclasses or its arguments don't fit.
    """
    known = {cls.__name__: cls for cls in _subclasses(ImageData)}
    try:
        made, args = known[config["class"]], dict(config["args"])
        if not args.keys() <= set(_arguments(made)):
            raise ValueError(f"{made.__name__} takes no such arguments")
        # A checkpoint may come from anyone: whether to write files, and with how many processes to read them, is up to
        # who evaluates it.
        return made(**args | {"workers": None} | ({"download": False} if "download" in args else {}))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the data set it was trained on is not known here ({type(error).__name__}: {str(error)[:200]}): say which "
            "to use with --data"
        ) from error


def _subclasses(cls: type[ImageData]) -> list[type[ImageData]]:
    children = cls.__subclasses__()
    return children + [sub for child in children for sub in _subclasses(child)]


def _arguments(cls: type) -> list[str]:
    """The named arguments of a class and of the parents that it hands its **kwargs to."""
    found: dict[str, None] = {}
    for parent in cls.__mro__[: cls.__mro__.index(ImageData) + 1]:
        for parameter in inspect.signature(parent).parameters.values():
            if parameter.kind is not parameter.VAR_KEYWORD:
                found[parameter.name] = None
    return list(found)


def _split(images: Dataset, count: int, seed: int) -> tuple[Subset, Subset]:
    """``count`` random images and the rest, both in their original sequence."""
    rng = seeded(seed, "split")
    shuffled = sorted(range(len(images)), key=lambda _: rng.random())  # type: ignore[arg-type]
    return Subset(images, sorted(shuffled[:count])), Subset(images, sorted(shuffled[count:]))


def _unwrapped(images: Dataset) -> Dataset:
    while isinstance(images, Subset):
        images = images.dataset
    return images


def _as_is(batch: Sequence[Tensor]) -> Sequence[Tensor]:
    return batch
