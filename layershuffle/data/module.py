"""The LightningDataModule behind every data set: its options, its splits and its loaders."""

import logging
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from layershuffle.data.augmentation import Augmented
from layershuffle.data.conditions import Conditions
from layershuffle.data.config import DataConfig
from layershuffle.data.decoding import PICTURE_CHANNELS
from layershuffle.data.description import describe, missing_classes
from layershuffle.data.loaders import WORKERS_LIMIT, image_loader
from layershuffle.data.preprocessing import SMALLEST_CROP, Preprocess, Resizing, check_channels
from layershuffle.data.samplers import TrainingSampler, evaluation_batches
from layershuffle.data.sets import Splitter, check_labels, labels_of, whole_set
from layershuffle.errors import UserError
from layershuffle.private_apis import adds_distributed_sampler

logger = logging.getLogger(__name__)


HELD_OUT_ARGUMENTS = ("train_images", "val_fraction", "split_seed", "stratified")
"""The arguments of ``ImageData`` that decide which of the training images are held out for validation."""


class ImageData(pl.LightningDataModule):
    """Training, validation and test images with labels from 0 to ``num_classes - 1``.

    A subclass implements ``load`` and sets ``num_classes``. It keeps each argument of its ``__init__``, a plain value,
    as an attribute of the same name, so that checkpoints can record it, and passes other arguments on as ``**kwargs``.

    Batches are uint8 images [batch, channels, height, width] and int64 labels [batch], or other labels where
    ``has_several_labels``. ``Preprocess`` resizes and normalises the images on the device.

    Args:
        batch_size: images per training step and process.
        eval_batch_size: images per batch in validation and evaluation, of all processes together; by default twice
            batch_size.
        val_fraction: the part of the training images held out to validate on. With 0 the test images are used, as
            in the LayerShuffle authors' code.
        train_images: use only this many training images, chosen at random. The validation images are a part of them.
        test_images: use only this many test images, chosen at random.
        split_seed: seed of the random choice of training, validation and test images, and of nothing else.
        stratified: whether the random choices take the same part of every class, so that each class is validated on if
            it has two images. Checkpoints that don't record this were trained on a split without regard to classes.
        workers: processes that read images, and augment them; by default one per core up to 16, and none for images in
            memory that are not augmented.
        on_device: whether a set in memory is kept on the device that trains or evaluates, so that batches need no
            workers and no copies from the host. The batches are the same either way. "auto" does so on a CUDA device
            that has ten times as much free memory as the set takes, but not with images that are augmented: their
            workers are faster.
        unreadable: how many images may be broken. Broken images are named, left out of evaluations, and replaced by
            others of the same batch in training. One more than this ends the run.
        image_size: height and width that images of varying size are resized and cropped to when read, in pixels. The
            commands set it to what the model takes.
        balanced: whether every class comes equally often in training, however many images it has. Each epoch samples
            as many images as there are, with replacement, so that those of a small class come several times.
        crop_pct: images of another size than image_size are resized to image_size / crop_pct, and the centre is
            cropped. By default, this and the next two are as in the paper (1, bilinear, center), or for a pretrained
            timm model that is studied as it is, as timm has them.
        interpolation: how images of another size are interpolated.
        crop_mode: whether the shorter side of an image is resized (center), or the image is squashed to a square.
    """

    # To mypy this is an attribute like any other, which a subclass may also set in ``__init__``.
    # At run time, a class that doesn't set it raises an error that says what to do.
    if TYPE_CHECKING:
        num_classes: int
    else:

        @cached_property
        def num_classes(self) -> int:
            """How many classes there are: subclasses set it."""
            raise UserError(f"{type(self).__name__} doesn't say how many classes there are: set num_classes in it")

    def __init__(  # noqa: PLR0913, PLR0917 (jsonargparse makes an option of each argument)
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
        stratified: bool = True,
    ) -> None:
        super().__init__()
        # Checkpoints record these, so each argument is an attribute of the same name.
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
        self.crop_pct = crop_pct
        self.interpolation = interpolation
        self.crop_mode = crop_mode
        self.balanced = balanced
        self.stratified = stratified
        self._check_arguments()

        # The images of each split, once they are set up.
        self.sets: dict[str, Dataset] = {}
        # Where there is no trainer, whoever evaluates says on which device and in how many processes.
        self.device = torch.device("cpu")
        self.ranks = 1
        self.rank = 0
        # The label that the loaders give in place of each label, for a model that has the same classes in another
        # sequence.
        self.new_labels: list[int] | None = None
        # How many channels the images of the model have, once the set is prepared for one.
        self.model_channels: int | None = None
        # Lightning may ask for the training images several times, and one warning is enough.
        self._has_warned_of_mirroring = False

    def _check_arguments(self) -> None:
        """Raise a UserError if an argument is out of range."""
        for size in (self.batch_size, self.evaluation_batch):
            if size < 1:
                raise UserError(f"a batch has at least one image, not {size}: give another --data.batch_size")
        if not 0 <= self.val_fraction < 1:
            raise UserError(f"val_fraction is a fraction from 0 to below 1, not {self.val_fraction}")
        if self.workers is not None and not 0 <= self.workers <= WORKERS_LIMIT:
            raise UserError(f"workers is a number of processes from 0 to {WORKERS_LIMIT:,}, not {self.workers}")
        if self.unreadable < 0:
            raise UserError(f"unreadable is a number of images, 0 or more, not {self.unreadable}")
        if self.image_size < 1:
            raise UserError(f"image_size is a number of pixels, 1 or more, not {self.image_size}")
        if self.crop_pct is not None and not SMALLEST_CROP <= self.crop_pct <= 1:
            raise UserError(f"crop_pct is a fraction from {SMALLEST_CROP} to 1, not {self.crop_pct}")

    # --- What a subclass says of its set --------------------------------------------------------------------

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
    def model_classes(self) -> int:
        """How many classes the models have that the set is for; more than its own where ``labels_in_model`` says so."""
        return self.num_classes

    def labels_in_model(self, classes: int, names: Sequence[str] | None) -> list[int] | None:
        """The label in a model of each of the set's classes, if the model has others besides and picks among these.

        By default None: then the model has the set's classes, and no others.

        Args:
            classes: how many classes the model has.
            names: their names, or None if they are unknown.

        Raises:
            UserError: if the set is not for such a model.
        """
        return None

    @property
    def conditions(self) -> Conditions | None:
        """The condition under which each test image was taken, such as a corruption; by default None: all alike."""
        return None

    @property
    def has_several_labels(self) -> bool:
        """Whether an image can show several of the classes, or none.

        Then the labels of a batch are uint8 [batch, classes], 1 where the image shows the class, and the objective of a
        training is one that takes them, such as ``MultiLabel``.
        """
        return False

    @property
    def has_handed_classes(self) -> bool:
        """Whether mirrored images are of another class or of none, as letters, digits and some signs are."""
        return False

    def test_arguments(self) -> tuple[str, ...]:
        """The arguments that decide which images are for testing and not for training: subclasses name theirs."""
        return ()

    # --- What is known about the set ------------------------------------------------------------------------

    def config(self) -> DataConfig:
        """What ``from_config`` makes the set of again; raises UserError if its arguments can't be recorded."""
        return DataConfig.of(self)

    def describe(self) -> str:
        """Lines that say what ``setup`` has loaded: how many images of each split and class, and what validates."""
        return describe(self.label, self.num_classes, self.class_names, self.sets, self.balanced)

    def deciding_arguments(self, split: Literal["val", "test"]) -> tuple[str, ...]:
        """The arguments that decide which images a split has.

        If one has another value than in a model's training, that model may have been trained on some of these images.
        """
        # Without a held-out part the test images validate.
        if split == "test" or not self.val_fraction:
            return self.test_arguments()
        return (*HELD_OUT_ARGUMENTS, *self.test_arguments())

    # --- The splits -----------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Load only the test images if ``stage`` is "test", otherwise all images."""
        # A class that can't be recorded fails now rather than when the first checkpoint is saved.
        self.config()

        # Lightning calls this for every stage, and the sets stay as they are.
        if "test" not in self.sets:
            self.sets["test"] = self._chosen(self.load(train=False), self.test_images, "test")
        if stage != "test" and "train" not in self.sets:
            self._set_up_training()
        self._check_channels()

        # A training describes its images, which includes the classes that have none.
        if self.trainer is None:
            self._warn_of_missing_classes()

    def _set_up_training(self) -> None:
        train = self._chosen(self.load(train=True), self.train_images, "train")

        # A set's own validation images come first, then a held-out part, then the test images.
        val = self.load_validation()
        if val is not None:
            self._check_labels(val, "validation")
        elif self.val_fraction:
            train, val = self._splitter.hold_out(train, self.val_fraction)
        else:
            val = self.sets["test"]
        if len(train) == 0:  # type: ignore[arg-type]
            raise UserError(f"val_fraction {self.val_fraction} leaves no image to train on: lower it")
        self.sets["train"] = train
        self.sets["val"] = val

    def _chosen(self, images: Dataset, count: int | None, split: str) -> Dataset:
        """``count`` random images of a split, or all."""
        if len(images) == 0:  # type: ignore[arg-type]
            raise UserError(f"the {split} set is empty")
        # All labels are checked, also those of images that aren't chosen: a wrong number of classes is found at once.
        self._check_labels(images, split)
        return self._splitter.choose(images, count, split)

    @property
    def _splitter(self) -> Splitter:
        return Splitter(self.split_seed, self.stratified)

    def _check_labels(self, images: Dataset, name: str) -> None:
        """Raise a UserError if the labels of a set, as far as it tells them, aren't those of its classes."""
        labels = labels_of(images)
        if labels is not None and len(labels):
            check_labels(labels, self.num_classes, f"the {name} set")

    def _check_channels(self) -> None:
        """Raise a UserError before the first batch if the model can't take the images, as far as the sets tell."""
        for images in self.sets.values():
            channels = getattr(whole_set(images), "channels", None)
            if channels is not None and self.model_channels is not None:
                check_channels(channels, self.model_channels)

    def _warn_of_missing_classes(self) -> None:
        names = self.class_names or [str(label) for label in range(self.num_classes)]
        # Only what scores are computed on matters here.
        scored: dict[str, Dataset] = {split: self.sets[split] for split in ("val", "test") if split in self.sets}
        for sentence in missing_classes(scored, self.num_classes, names):
            rank_zero_only(logger.warning)("%s: %s", self.label, sentence)

    # --- The model's input ----------------------------------------------------------------------------------

    def prepare_for(
        self,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        crop_pct: float | None = None,
        interpolation: str | None = None,
        crop_mode: str | None = None,
    ) -> Preprocess:
        """Read images for a model that takes them like this, and return what makes its input of them.

        The arguments are those of ``Preprocess``, but the set's own crop_pct, interpolation and crop_mode come first.
        """
        # The set keeps what was decided, so that a checkpoint of its training records it, and evaluation does the same.
        self.image_size = size
        self.model_channels = len(mean)
        resizing = self.resizing.or_else(Resizing(crop_pct, interpolation, crop_mode))
        self.crop_pct = resizing.crop_pct
        self.interpolation = resizing.interpolation  # type: ignore[assignment]
        self.crop_mode = resizing.crop_mode  # type: ignore[assignment]
        return Preprocess(size, mean, std, self.crop_pct, self.interpolation, self.crop_mode)

    @property
    def resizing(self) -> Resizing:
        """How images of another size are resized and cropped."""
        return Resizing(self.crop_pct, self.interpolation, self.crop_mode)

    @property
    def picture_channels(self) -> int:
        """How many channels picture files are read in: as many as the model takes, if pictures can have so many."""
        return self.model_channels if self.model_channels in PICTURE_CHANNELS else 3

    # --- Batches --------------------------------------------------------------------------------------------

    @property
    def evaluation_batch(self) -> int:
        """Images per batch in validation and evaluation, of all processes together."""
        return self.eval_batch_size or 2 * self.batch_size

    def train_dataloader(self) -> DataLoader:
        """Batches shuffled by the run's seed and the epoch alone, so that a resumed run continues with the same ones.

        An incomplete last batch is left out, so that all steps are alike. Images that can't be divided evenly between
        the processes are left out, too, so that none is read twice.
        """
        train = self.sets["train"]

        # ``FineTuner`` has a seed and an augmentation, but this also works with another module, or without any.
        module = getattr(self.trainer, "lightning_module", None)
        seed = getattr(module, "seed", torch.initial_seed() % 2**32)
        augmentation = getattr(module, "augmentation", None)
        if augmentation and augmentation.mirrors and self.has_handed_classes:
            self._warn_of_mirroring()
        if augmentation and augmentation.changes_images:
            train = Augmented(train, augmentation, self.image_size, seed, self.resizing)

        labels = self.training_labels("data.balanced") if self.balanced else None
        sampler = TrainingSampler(train, self.batch_size, seed, self.trainer, labels)  # type: ignore[arg-type]
        # A set of less than one batch is a batch by itself.
        drop_last = len(sampler) >= self.batch_size
        return self._loader(train, self.batch_size, training=True, sampler=sampler, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader:
        return self.loader("test")

    def loader(self, split: Literal["train", "val", "test"], batch_size: int | None = None) -> DataLoader:
        """Every image of a split once, in order and without augmentation, however many processes share them.

        A batch has ``batch_size`` images of all processes together, by default ``evaluation_batch``.
        """
        images = self.sets[split]
        batch_size = batch_size or self.evaluation_batch

        # In a training the trainer knows the processes, otherwise whoever evaluates has said so.
        ranks = self.ranks
        rank = self.rank
        if self.trainer:
            ranks = self.trainer.world_size
            rank = self.trainer.global_rank
        if ranks == 1:
            return self._loader(images, batch_size)

        # Lightning's sampler would repeat images to give each process as many, and so count them twice.
        if self.trainer and adds_distributed_sampler(self.trainer):
            raise UserError("ImageData shares out the images itself: give the Trainer use_distributed_sampler=False")
        batches = evaluation_batches(len(images), batch_size, ranks, rank)  # type: ignore[arg-type]
        return self._loader(images, 1, batch_sampler=batches)

    def parts(self, split: str, fraction: float, seed: int) -> tuple[DataLoader, DataLoader]:
        """Split the "val" or "test" images at random into a ``fraction`` to search on and the rest to report on."""
        images: Any = self.sets[split]
        total = len(images)
        count = round(total * fraction)
        if not 0 < count < total:
            raise UserError(
                f"a search needs images to search on and others to report on: {fraction} of {total} leaves none for one"
            )
        searched, reported = Splitter(seed, self.stratified).divide(images, count)
        return self._loader(searched, self.evaluation_batch), self._loader(reported, self.evaluation_batch)

    def training_labels(self, option: str) -> Tensor:
        """The labels of the training images, int64 [images]; a UserError names the option that needs them."""
        if self.has_several_labels:
            raise UserError(f"--{option} needs images with one label each, and those of {self.label} have several")
        labels = labels_of(self.sets["train"])
        if labels is None:
            raise UserError(
                f"--{option} needs the labels of all training images, which {self.label} doesn't tell without reading "
                "them: leave it out, or keep them as an attribute targets of the data set"
            )
        return labels.cpu()

    def _loader(
        self,
        images: Dataset,
        batch_size: int,
        *,
        training: bool = False,
        sampler: TrainingSampler | None = None,
        batch_sampler: list[list[int]] | None = None,
        drop_last: bool = False,
    ) -> DataLoader:
        return image_loader(
            images,
            batch_size,
            label=self.label,
            num_classes=self.num_classes,
            training=training,
            workers=self.workers,
            on_device=self.on_device,
            device=self.trainer.strategy.root_device if self.trainer else self.device,
            sampler=sampler,
            batch_sampler=batch_sampler,
            drop_last=drop_last,
            new_labels=self.new_labels,
        )

    def _warn_of_mirroring(self) -> None:
        if self._has_warned_of_mirroring:
            return
        self._has_warned_of_mirroring = True
        rank_zero_only(logger.warning)(
            "images of %s are mirrored, which makes another class or none of letters, digits and signs: add "
            "--model.augmentation.flip 0",
            self.label,
        )
