"""Trains a linear classifier on the features of a frozen model."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

import torch
from torch import nn

from layershuffle.api.data import DataLike
from layershuffle.api.progress import progress_bar
from layershuffle.api.search import warn_of_few_images
from layershuffle.api.study import ModelLike, Study, start_study
from layershuffle.api.study_options import StudyOptions
from layershuffle.checkpoints.export import check_new, export
from layershuffle.checkpoints.exported import DESCRIPTION_FILE, WEIGHTS_FILE, read_description, write_description
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.choices import Split
from layershuffle.errors import UserError
from layershuffle.evaluation.features import Features
from layershuffle.evaluation.linear_probe import PENALTIES, Standardisation, accuracy, balanced, logistic_regressions
from layershuffle.evaluation.neighbours import NearestNeighbours
from layershuffle.files import sha256
from layershuffle.models.fitting import with_linear_classifier
from layershuffle.orders.samplers import Sequential
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import LinearProbe, ProbeScore

logger = logging.getLogger(__name__)


def linear_probe(
    model: ModelLike,
    data: DataLike = None,
    *,
    folder: str | Path | None = None,
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
        folder: a new folder for the model with the linear classifier. Everything that takes a model takes it, so that
            the probe can be evaluated in any order. By default the classifier isn't kept.
        split: must be "test"; validation images choose the penalty.
        options: ``seed``, ``accelerator``, ``precision``, ``compile`` and ``batch_size``, see ``StudyOptions``.
            The seed also decides which images are held out.

    Returns:
        Results with the measure ``LinearProbe``.

    Raises:
        UserError: if there is no such model or data set, it has no validation images of its own, or the folder is not
            empty or can't be written.
    """
    if folder is not None:
        check_new(Path(folder))
    probed = fit_linear_probe(model, data, split=split, **options)
    if folder is not None:
        write_linear_probe(probed.model, Path(folder))
    return probed.results


@dataclass(frozen=True)
class LinearProbedModel:
    """A model with a linear classifier that was trained on its features.

    Attributes:
        model: the model.
        results: those of ``linear_probe``.
    """

    model: LoadedModel
    results: Results


def fit_linear_probe(
    model: ModelLike, data: DataLike, *, split: Split, **options: Unpack[StudyOptions]
) -> LinearProbedModel:
    """Do what ``linear_probe`` does, but write nothing; raises UserError as it does."""
    if split != "test":
        raise UserError("a linear probe is scored on the test images, and validation images choose it: leave out split")
    study = start_study(model, data, split=split, classifier=None, **options)
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
    train = study.features("train")
    val = study.features("val")
    test = study.features("test")
    classes = study.data.num_classes
    # The yardstick: a vote has nothing to train and nothing to choose.
    neighbours = NearestNeighbours(train, classes)
    probe = _best_regression(train, val, test, classes)

    images = [len(part.labels) for part in (train, val, test)]
    most_frequent = float(test.labels.bincount().max()) / images[2]
    measure = LinearProbe(
        images, neighbours.neighbours, _score(neighbours, val, test, classes), probe.penalty, probe.score, most_frequent
    )
    results = study.results([], EvaluationInfo(order=str(study.model.order)), [measure])
    return LinearProbedModel(_with_classifier(study, probe.linear), results)


def write_linear_probe(model: LoadedModel, folder: Path) -> None:
    """Write the model as ``layershuffle export`` does; raises UserError if it can't be written."""
    # Before anything that would remove the folder.
    check_new(folder)
    try:
        export(model, folder)
        # These are other weights than those that were probed.
        description = read_description(folder / DESCRIPTION_FILE)
        info = replace(description.info, sha256=sha256(folder / WEIGHTS_FILE))
        write_description(folder / DESCRIPTION_FILE, replace(description, info=info))
    # A folder that is there must be whole.
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    logger.info("the model with the linear classifier: %s", folder)


@dataclass(frozen=True)
class _Probe:
    """A linear classifier of features, and what it was chosen by.

    Attributes:
        penalty: the weight of its L2 penalty.
        score: its accuracies.
        linear: the classifier itself, which takes the features as they are.
    """

    penalty: float
    score: ProbeScore
    linear: nn.Linear


def _best_regression(train: Features, val: Features, test: Features, classes: int) -> _Probe:
    """The classifier with the highest validation accuracy, of equal ones that with the strongest penalty."""
    # With the mean and the spread of the training images alone: those of other images must not reach the classifier.
    standardise = Standardisation.of(train.features)
    standardised = Features(standardise(train.features), train.labels)
    total = len(PENALTIES)
    best: _Probe | None = None
    with progress_bar("fitting logistic regressions", total, "regression") as advance:
        # All of them are one module, which each penalty trains further: it is scored before the next one.
        for penalty, linear in zip(PENALTIES, logistic_regressions(standardised, classes)):
            fitted = standardise.folded_into(linear)
            score = _score(fitted, val, test, classes)
            # Penalties fall from one to the next, so that of equal scores the first is that of the simplest classifier.
            if best is None or score.val > best.score.val:
                best = _Probe(penalty, score, fitted)
            advance()
    assert best is not None, "there are penalties"
    return best


@torch.inference_mode()
def _score(classifier: nn.Module, val: Features, test: Features, classes: int) -> ProbeScore:
    """The accuracies of a classifier of features."""
    predicted = classifier(test.features).argmax(dim=1)
    return ProbeScore(
        val=accuracy(classifier(val.features).argmax(dim=1), val.labels),
        test=accuracy(predicted, test.labels),
        balanced=balanced(predicted, test.labels, classes),
    )


def _with_classifier(study: Study, linear: nn.Linear) -> LoadedModel:
    """The model of the study with a linear classifier, as if it had been trained on the study's data."""
    loaded = study.loaded
    model = with_linear_classifier(study.model, linear).cpu()
    info = replace(loaded.info, config=model.config)
    if info.method is None:
        # The classifier was trained in the base order, and nothing else was trained.
        info = replace(info, method="linear-probe", sampler=repr(Sequential()), seed=study.seed)
    else:
        info = replace(info, method=f"{info.method}-linear-probe")
    names = study.data.class_names
    return replace(
        loaded,
        model=model,
        info=info,
        data=replace(study.data.config(), classes=names),
        # The data says how images are resized.
        image_format=None,
        class_names=names,
    )
