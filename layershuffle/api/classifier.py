"""Whether the classifier of a model that is studied fits the classes of the data."""

import logging
from collections.abc import Sequence
from dataclasses import replace

from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.training_data import match_classes
from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.models.fitting import with_classes
from layershuffle.plurals import counted

logger = logging.getLogger(__name__)


def with_classifier_for(data: ImageData, loaded: LoadedModel) -> LoadedModel:
    """The model with a classifier that fits the data, whose labels are brought into the sequence of its classes.

    Raises:
        UserError: if the model has other classes than the data.
    """
    # Such a checkpoint is whole, and looks like that of a trained model.
    if (loaded.info.compute or {}).get("updates") == 0:
        logger.warning(
            "%s was trained for 0 updates: a classifier that its weights didn't bring is untrained", loaded.info.name
        )
    _check_labels(data, loaded)
    loaded = _with_classes_of(data, loaded)
    _match_class_names(data, loaded)
    return loaded


def _check_labels(data: ImageData, loaded: LoadedModel) -> None:
    """Raise a UserError if the model names one class for each image and the data has several, or the other way."""
    names_several = loaded.info.thresholds is not None
    if names_several == data.has_several_labels:
        return
    words = {False: "one label for each image", True: "several labels for each image"}
    raise UserError(
        f"{loaded.info.name} was trained with {words[names_several]}, but {data.label} has "
        f"{words[data.has_several_labels]}: give other data"
    )


def _with_classes_of(data: ImageData, loaded: LoadedModel) -> LoadedModel:
    """The model, with no more classes than the data if these are among its own, or it is an authors' checkpoint.

    The authors' checkpoints have 1,000 classes whatever they were trained on. Any other model must have as many as the
    data, unless the data says which of the model's classes it has.
    """
    classes = loaded.info.num_classes
    names = loaded.class_names if loaded.data is not None else None
    labels = data.labels_in_model(classes, names)
    if labels is not None:
        return _keep(labels, data, loaded)
    if classes == data.num_classes:
        return loaded
    if not loaded.authors or classes < data.num_classes:
        raise UserError(
            f"the model has {counted(classes, 'class')}, but the data has {data.num_classes}: give other data"
        )
    model = with_classes(loaded.model, range(data.num_classes))
    logger.info("of the %d classes of the authors' checkpoint, the first %d are used", classes, data.num_classes)
    info = replace(loaded.info, config=model.config, classes=f"the first {data.num_classes} of {classes}")
    return replace(loaded, model=model, info=info)


def _keep(labels: Sequence[int], data: ImageData, loaded: LoadedModel) -> LoadedModel:
    """The model with those of its classes that the data has, in the sequence of the data."""
    loaded = replace(loaded, class_names=data.class_names)
    total = loaded.info.num_classes
    if list(labels) == list(range(total)):
        return loaded
    model = with_classes(loaded.model, labels)
    logger.info("of the model's %d classes it picks among the %d of %s", total, len(labels), data.label)
    info = replace(loaded.info, config=model.config, classes=f"the {len(labels)} of {data.label} among {total}")
    return replace(loaded, model=model, info=info)


def _match_class_names(data: ImageData, loaded: LoadedModel) -> None:
    """Bring the labels of the data into the sequence of the model's classes; raises UserError if the names differ."""
    # timm's names and the authors' are another vocabulary than the data's, so they are not compared.
    if loaded.data is None:
        return
    data.new_labels = match_classes(loaded.class_names, data.class_names, f"the model {loaded.info.name}", data.label)
    if data.new_labels is not None:
        logger.info("the classes of %s have the model's names in another sequence, which the labels follow", data.label)
