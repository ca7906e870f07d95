"""Trains a linear classifier on the features of a frozen model."""

import logging
from typing import Literal, Unpack

import torch

from layershuffle.api.data import DataLike
from layershuffle.api.progress import progress_bar
from layershuffle.api.search import warn_of_few_images
from layershuffle.api.study import ModelLike, Study, start_study
from layershuffle.api.study_options import StudyOptions
from layershuffle.choices import Split
from layershuffle.errors import UserError
from layershuffle.evaluation.linear_probe import (
    NEIGHBOURS,
    PENALTIES,
    Features,
    Standardisation,
    accuracy,
    balanced,
    features_of,
    logistic_regressions,
    nearest_neighbours,
)
from layershuffle.plurals import counted
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import LinearProbe, ProbeScore

logger = logging.getLogger(__name__)


def linear_probe(
    model: ModelLike,
    data: DataLike = None,
    *,
    split: Split = "test",
    **options: Unpack[StudyOptions],
) -> Results:
    """Train a linear classifier on the features of a frozen model, and score it on the test images.

    The features, which are what the model's own classifier reads, are computed once, in the base order and without
    augmentation. Then logistic regressions with several L2 penalties are fitted to the training images; validation
    images choose one. A vote of the nearest training images is a yardstick that needs no training.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned. Its
            classifier isn't used.
        data: a data set, or the name of its config, such as "glyphs"; by default the one the model was trained on.
        split: must be "test"; validation images choose the penalty.
        options: ``seed``, ``accelerator``, ``precision``, ``compile`` and ``batch_size``, see ``StudyOptions``.
            The seed also decides which images are held out.

    Returns:
        Results with the measure ``LinearProbe``.

    Raises:
        UserError: if there is no such model or data set, or it has no validation images of its own.
    """
    if split != "test":
        raise UserError("a linear probe is scored on the test images, and validation images choose it: leave out split")
    study = start_study(model, data, split=split, keeps_classifier=False, **options)
    # The test images are there already, and a probe also needs those of a training.
    study.data.setup("fit")
    if study.data.sets["val"] is study.data.sets["test"]:
        raise UserError(
            "the test images can't choose the penalty: hold out some of the training images (data.val_fraction 0.1)"
        )
    logger.info(study.data.describe())
    # Accuracies of the two commands are compared, and differ by how images are resized.
    if study.loaded.image_format is not None:
        logger.info(
            "images are resized as timm does for this model (%s); layershuffle train resizes as the paper does "
            "(bilinear), unless --data.interpolation says otherwise",
            study.data.interpolation,
        )
    choosing = len(study.data.sets["val"])  # type: ignore[arg-type]
    warn_of_few_images(choosing, study.data.num_classes, "val", chosen="the penalty is", options=())

    # The backbone is frozen, so that each image passes it once, however many classifiers are fitted.
    train = _features(study, "train")
    val = _features(study, "val")
    test = _features(study, "test")
    # The yardstick: a vote has nothing to train and nothing to choose.
    classes = study.data.num_classes
    voted = nearest_neighbours(train, test.features, classes)
    neighbours = ProbeScore(
        val=accuracy(nearest_neighbours(train, val.features, classes), val.labels),
        test=accuracy(voted, test.labels),
        balanced=balanced(voted, test.labels, classes),
    )
    penalty, linear = _best_regression(train, val, test, classes)

    images = [len(part.labels) for part in (train, val, test)]
    most_frequent = float(test.labels.bincount().max()) / images[2]
    measure = LinearProbe(images, min(NEIGHBOURS, images[0]), neighbours, penalty, linear, most_frequent)
    return study.results([], EvaluationInfo(order=str(study.model.order)), [measure])


def _features(study: Study, part: Literal["train", "val", "test"]) -> Features:
    """The features of the training, validation or test images."""
    batches = study.data.loader(part, study.batch_size)
    # Where there is no terminal, a batch of large images may take long, and nothing else is seen until its end.
    logger.info(
        "computing the features of the %s images, %s of %d", part, counted(len(batches), "batch"), study.batch_size
    )
    with progress_bar(f"features of the {part} images", len(batches), "batch") as advance:
        return features_of(study.model, study.preprocess, batches, study.fabric, advance)


def _best_regression(train: Features, val: Features, test: Features, classes: int) -> tuple[float, ProbeScore]:
    """The penalty with the highest validation accuracy, of equal ones the strongest, and the scores with it."""
    # With the mean and the spread of the training images alone: those of other images must not reach the classifier.
    standardise = Standardisation.of(train.features)
    standardised = Features(standardise(train.features), train.labels)
    val_features = standardise(val.features)
    test_features = standardise(test.features)
    total = len(PENALTIES)
    best: tuple[float, ProbeScore] | None = None
    with progress_bar("fitting logistic regressions", total, "regression") as advance:
        # All of them are one module, which each penalty trains further: it is scored before the next one.
        for penalty, linear in zip(PENALTIES, logistic_regressions(standardised, classes)):
            with torch.inference_mode():
                predicted = linear(test_features).argmax(dim=1)
                score = ProbeScore(
                    val=accuracy(linear(val_features).argmax(dim=1), val.labels),
                    test=accuracy(predicted, test.labels),
                    balanced=balanced(predicted, test.labels, classes),
                )
            # Penalties fall from one to the next, so that of equal scores the first is that of the simplest classifier.
            if best is None or score.val > best[1].val:
                best = penalty, score
            advance()
    assert best is not None, "there are penalties"
    return best
