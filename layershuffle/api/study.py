"""What all studies of a model begin and end with: the model with its images and a device, and the results."""

import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from os import PathLike
from typing import Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.data import DataLoader

from layershuffle.api.arguments import check_at_least, check_choice, check_seed
from layershuffle.api.classifier import with_classifier_for
from layershuffle.api.data import DataLike, as_data
from layershuffle.api.introduction import introduce_input
from layershuffle.api.progress import progress_bar
from layershuffle.api.study_options import BatchSize
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load
from layershuffle.choices import Classifier, Precision, Split
from layershuffle.data import ImageData, Preprocess, warn_of_training_images
from layershuffle.data.conditions import ConditionBatches
from layershuffle.errors import UserError
from layershuffle.evaluation import scoring
from layershuffle.evaluation.device import largest_evaluation_batch, make_fabric
from layershuffle.evaluation.features import Features, features_of
from layershuffle.evaluation.neighbours import NEIGHBOURS, TEMPERATURE, NearestNeighbours
from layershuffle.hardware import device_name
from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import Order
from layershuffle.orders.protocols import Trial
from layershuffle.plurals import counted
from layershuffle.private_apis import precision_of
from layershuffle.progress_lines import LineClock
from layershuffle.results import DataInfo, Environment, EvaluationInfo, Measure, NeighbourVote, Results, Score, tables
from layershuffle.version import __version__

logger = logging.getLogger(__name__)

ModelLike = str | PathLike[str] | LoadedModel
"""A model that is loaded, or what ``layershuffle.load`` takes.

What ``train``, ``merge`` and ``export`` return is path-like, and so is a model too.
"""

MOST_NAMED = 3
"""How many orders a warning about logits that are not numbers names."""


@dataclass(frozen=True)
class Study:
    """A model, the images that it is studied on, and the device that computes.

    Attributes:
        loaded: the model and what is known about it.
        data: the data set.
        split: which of its images are used.
        preprocess: makes the model's input of these images, on the device.
        batches: the images in batches. Each of several processes has a part of them.
        batch_size: images per batch, of all processes together.
        fabric: the device and the precision.
        seed: decides everything random.
        is_compiled: whether the layers are compiled.
        neighbours: classifies in place of the model's own classifier, if it isn't None.
    """

    loaded: LoadedModel
    data: ImageData
    split: Split
    preprocess: Preprocess
    batches: DataLoader
    batch_size: int
    fabric: Fabric
    seed: int
    is_compiled: bool
    neighbours: NearestNeighbours | None = None

    @property
    def model(self) -> OrderedViT:
        """The model itself."""
        return self.loaded.model

    def score(
        self,
        to_score: Sequence[Trial],
        batches: DataLoader | ConditionBatches | None = None,
        doing: str = "evaluating",
        on_output: Callable[[Order, Output, Tensor], None] | None = None,
        clock: LineClock | None = None,
    ) -> list[Score]:
        """Score orders, with a progress bar.

        Args:
            to_score: the orders.
            batches: the images, by default all.
            doing: what the progress bar says before the model's name.
            on_output: see ``layershuffle.evaluation.scoring.evaluate``.
            clock: says when to log a line where there is no terminal. The many evaluations of a search share one.
        """
        if batches is None:
            batches = self.batches
        # Each order runs once, however many trials it has, and what each image chooses runs no order of its own.
        orders = {trial.order for trial in to_score if not isinstance(trial.order, str)}
        total = len(batches) * len(orders)
        with progress_bar(f"{doing} {self.loaded.info.name}", total, "forward pass", clock) as advance:

            def pass_on(order: Order, output: Output, labels: Tensor) -> None:
                if on_output:
                    on_output(order, output, labels)
                advance()

            with self.model.classified_by(self.neighbours):
                return scoring.evaluate(
                    self.model,
                    self.preprocess,
                    batches,
                    to_score,
                    self.fabric,
                    self.seed,
                    pass_on,
                    self.loaded.info.thresholds if self.data.has_several_labels else None,
                )

    def features(self, part: Literal["train", "val", "test"]) -> Features:
        """What the classifier reads of the training, validation or test images, in the base order."""
        batches = self.data.loader(part, self.batch_size)
        # Where there is no terminal, a batch of large images may take long, and nothing else is seen until its end.
        count = counted(len(batches), "batch")
        logger.info("computing the features of the %s images, %s of %d", part, count, self.batch_size)
        with progress_bar(f"features of the {part} images", len(batches), "batch") as advance:
            return features_of(self.model, self.preprocess, batches, self.fabric, advance)

    def first_batch(self) -> Tensor:
        """The first batch of images as the model takes it, float32 [batch, channels, size, size], on the device."""
        images, _ = next(iter(self.batches))
        return self.preprocess.to(self.fabric.device)(images.to(self.fabric.device))

    def results(self, scores: list[Score], used: EvaluationInfo, measures: Sequence[Measure] = ()) -> Results:
        """The results of the study, with everything needed to repeat it.

        Args:
            scores: the scores of orders, if there are any.
            used: the settings that were used, besides the seed and the batch size.
            measures: what else was measured.
        """
        _warn_of_nan(scores)
        return Results(
            model=self.loaded.info,
            data=self._data_info(scores[0].images if scores else len(self.batches.dataset)),  # type: ignore[arg-type]
            evaluation=replace(used, seed=self.seed, batch_size=self.batch_size, classifier=self._vote()),
            environment=self._environment(),
            scores=scores,
            measures=tuple(measures),
        )

    def _vote(self) -> NeighbourVote | None:
        if self.neighbours is None:
            return None
        images = len(self.neighbours.labels)
        return NeighbourVote(neighbours=self.neighbours.neighbours, images=images, temperature=TEMPERATURE)

    def _data_info(self, images: int) -> DataInfo:
        config = self.data.config()
        return DataInfo(
            name=self.data.label,
            data_class=config.name,
            args=config.args,
            split=self.split,
            images=images,
            classes=self._class_names(),
        )

    def _class_names(self) -> list[str] | None:
        """The names of the classes, in the sequence of the labels that the batches have."""
        if self.data.new_labels is not None:
            return self.loaded.class_names
        return self.data.class_names

    def _environment(self) -> Environment:
        device = device_name(self.fabric.device)
        if self.fabric.device.type != "cuda":
            device = f"CPU: {device}, {counted(torch.get_num_threads(), 'thread')}"
        return Environment(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            device=device,
            processes=self.fabric.world_size,
            precision=precision_of(self.fabric),
            compiled=self.is_compiled,
            layershuffle=__version__,
            torch=torch.__version__,
            timm=version("timm"),
            lightning=version("lightning"),
            python=platform.python_version(),
        )


def start_study(
    model: ModelLike,
    data: DataLike,
    *,
    split: Split,
    seed: int = 0,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    compile: bool = False,
    batch_size: BatchSize = None,
    is_shared: bool = False,
    classifier: Classifier | None = "own",
    neighbours: int = NEIGHBOURS,
    takes_several_labels: bool = False,
) -> Study:
    """Load a model and its images, and find the device.

    Args:
        model: see ``ModelLike``. A model that is loaded already is moved to the device.
        data: see ``layershuffle.api.data.as_data``.
        split: which of its images to use.
        seed: decides everything random. ``StudyOptions`` says more about this and the next four.
        accelerator: Lightning's name of the device to run on.
        precision: of the forward pass.
        compile: whether to compile the layers.
        batch_size: images per batch.
        is_shared: whether the processes that torchrun starts share the images; otherwise there must be just one.
        classifier: what classifies: the model's "own" classifier, which must have the classes of the data; a vote of
            the nearest "neighbours" among the training images; or nothing, if it is None.
        neighbours: how many training images vote.
        takes_several_labels: whether the images may have several labels each.

    Raises:
        UserError: if there is no such model or data, or the two don't fit.
    """
    # A model takes seconds to load, and a search hours: what is wrong should be known at once.
    check_seed(seed)
    check_choice("split", split, Split)
    check_choice("precision", precision, Precision)
    if classifier is not None:
        check_choice("classifier", classifier, Classifier)
    check_at_least(1, neighbours=neighbours)
    if batch_size is not None and batch_size != "auto":
        check_at_least(1, batch_size=batch_size)

    # The seed also decides the weights of a model that is loaded with random ones.
    torch.manual_seed(seed)
    loaded = as_loaded(model, needs_classifier=classifier == "own")
    size_option = "--model.timm_args.img_size for training"
    if loaded.image_format is not None:
        size_option = "--img_size"
    introduce_input(loaded.model, size_option)

    # The images, of which each process reads its part.
    data = as_data(data, loaded)
    _check_labels(data, takes_several_labels)
    fabric = make_fabric(accelerator, precision, loaded.model, is_shared)
    data.device = fabric.device
    data.ranks = fabric.world_size
    data.rank = fabric.global_rank
    preprocess = data.prepare_for(*(loaded.image_format or loaded.model.image_format))
    # One process downloads, and the others find the files.
    with fabric.rank_zero_first():
        data.prepare_data()
    needs_training_images = split != "test" or classifier == "neighbours"
    data.setup("fit" if needs_training_images else "test")
    if loaded.data is not None:
        warn_of_training_images(loaded.data, data, split)

    if classifier == "own":
        loaded = with_classifier_for(data, loaded)
    else:
        # The results name the classes that are studied, whatever the model's own classifier has.
        config = {**(loaded.info.config or {}), "num_classes": data.num_classes}
        loaded = replace(loaded, info=replace(loaded.info, config=config))
    _tell_untrained_layers(loaded.model)

    if batch_size == "auto":
        batch_size = largest_evaluation_batch(loaded.model, data, split, fabric)
    elif batch_size is None:
        batch_size = data.evaluation_batch
    if compile:
        loaded.model.compile()
    batches = data.loader(split, batch_size)
    study = Study(loaded, data, split, preprocess, batches, batch_size, fabric, seed, compile)
    if classifier == "neighbours":
        vote = NearestNeighbours(study.features("train"), data.num_classes, neighbours)
        study = replace(study, neighbours=vote)
    return study


def _check_labels(data: ImageData, takes_several: bool) -> None:
    """Raise a UserError if the images have several labels each, and the study takes one."""
    if data.has_several_labels and not takes_several:
        raise UserError(f"the images of {data.label} have several labels each, which this can't score: use evaluate")


def as_loaded(model: ModelLike, needs_classifier: bool = True) -> LoadedModel:
    """The model itself, loaded if need be.

    Args:
        model: the model.
        needs_classifier: whether timm's weights without a classifier are refused.

    Raises:
        UserError: if there is no such model.
    """
    if isinstance(model, LoadedModel):
        return model
    return load(model, num_classes=None if needs_classifier else 0)


def _tell_untrained_layers(model: OrderedViT) -> None:
    """Log it if the model's base order leaves some of its layers out."""
    trained = len(model.order.layers)
    if trained < model.depth:
        logger.info(
            "the model was trained with %d of its %d layers, so all layers means those of its base order: %s",
            trained,
            model.depth,
            model.order,
        )


def _warn_of_nan(scores: Sequence[Score]) -> None:
    """Warn of orders in which some logits are not numbers (NaN), and name the first ones."""
    affected = [score for score in scores if score.nan]
    if not affected:
        return
    counts = []
    for score in affected[:MOST_NAMED]:
        order = score.order or tables.name_of((score.protocol, *score.variant.values()))
        counts.append(f"{score.nan} in order {order}")
    text = ", ".join(counts)
    if len(affected) > MOST_NAMED:
        text += f", and some in {len(affected) - MOST_NAMED} more, which the results name"
    logger.warning(
        "of %d images these count as wrong, because their logits are not numbers (NaN): %s", affected[0].images, text
    )
