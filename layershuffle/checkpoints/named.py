"""Loads models by their names: timm's models, and those of the config files in configs/model.

timm is imported where it is used, because that takes most of a second.
"""

from typing import Any

from layershuffle import config_files
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.errors import UserError
from layershuffle.files import read_yaml, sha256
from layershuffle.models.create import ARGUMENTS, create_model
from layershuffle.models.timm_models import classes_of
from layershuffle.published_models import weights_file
from layershuffle.results import ModelInfo

IMAGENET_CLASSES = 1000
"""How many classes a model has if timm doesn't say it."""


def load_timm(
    name: str, pretrained: str | None, num_classes: int | None, arguments: dict[str, Any] | None = None
) -> LoadedModel:
    """Load a timm model, in evaluation mode.

    Args:
        name: timm's name of the model.
        pretrained: a path to its weights, whose classes it then has, or "random"; by default timm's weights.
        num_classes: the number of classes, where the classifier is to be random; by default as many as timm's weights
            have. With 0 the classifier is left out.
        arguments: further arguments of ``create_model``.

    Raises:
        UserError: if timm has no such model, or its weights can't be fetched or read, or have no classifier.
    """
    # Random weights, timm's own, or those of a file: where the number of classes comes from differs.
    arguments = arguments or {}
    if pretrained == "random":
        model = create_model(name, _number_of_classes(name, num_classes), **arguments).eval()
        info = ModelInfo(name=name, source="random weights", config=model.config)
        return LoadedModel(model, info, image_format=model.timm_format)

    if pretrained is None:
        model = create_model(name, _number_of_classes(name, num_classes), pretrained=True, **arguments).eval()
        info = ModelInfo(name=name, source=name, config=model.config)
        return LoadedModel(model, info, image_format=model.timm_format, class_names=_imagenet_names(model.vit))

    classes = num_classes
    if num_classes != 0:
        classes = classes_of(pretrained, name, arguments.get("head", "average")) or num_classes
    # Weights that don't fit are refused first: of those, it would be of no use to train a classifier.
    model = create_model(name, classes or 0, pretrained=pretrained, **arguments).eval()
    if classes is None:
        raise UserError(
            f"{pretrained} holds no classifier: train one first (layershuffle train, --model.pretrained {pretrained}), "
            "or judge the model without one (layershuffle evaluate --classifier neighbours)"
        )
    info = ModelInfo(name=name, source=pretrained, sha256=sha256(weights_file(pretrained)), config=model.config)
    return LoadedModel(model, info, image_format=model.timm_format)


def is_config(name: str) -> bool:
    """Whether ``name``, such as ``vit_b16`` or ``model/vit_b16``, is that of a model's config, and of no timm model."""
    if _full_name(name) not in config_files.known():
        return False
    import timm

    return not timm.is_model(name)


def load_config(name: str, pretrained: str | None, num_classes: int | None, img_size: int | None = None) -> LoadedModel:
    """Load the model of a config, in evaluation mode, with the weights that its training would start from.

    Args:
        name: the config's name.
        pretrained: see ``load_timm``; by default what the config says.
        num_classes: see ``load_timm``.
        img_size: the height and the width of the images, in pixels; by default as the config says.

    Raises:
        UserError: if the config is no model's or names no weights, or as ``load_timm``.
    """
    content = read_yaml(config_files.find(_full_name(name)))
    settings = content.get("model") if isinstance(content, dict) else None
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        raise UserError(f"the config {name} names no model")
    if pretrained is None:
        # A path, or true for timm's weights.
        weights = settings.get("pretrained")
        if not weights:
            raise UserError(f"the config {name} has no weights: train its model first, or give --pretrained")
        pretrained = weights if isinstance(weights, str) else None

    # A config also has settings of the training, such as the sampler, which make no difference to the model.
    known = ARGUMENTS - {"name", "num_classes"}
    arguments = {key: value for key, value in settings.items() if key in known}
    arguments.update(settings.get("timm_args") or {})
    if img_size is not None:
        arguments["img_size"] = img_size
    return load_timm(settings["name"], pretrained, num_classes, arguments)


def _full_name(name: str) -> str:
    return f"model/{name.removeprefix('model/')}"


def _number_of_classes(name: str, num_classes: int | None) -> int:
    """How many classes a model is to have, by default as many as timm's weights; raises UserError if these have none.

    The arguments are those of ``load_timm``.
    """
    if num_classes is not None:
        return num_classes
    classes = _timm_classes(name)
    if not classes:
        raise UserError(
            f"{name} has no classifier of its own: train one first (layershuffle train or linear-probe), or judge the "
            "model without one (layershuffle evaluate --classifier neighbours)"
        )
    return classes


def _timm_classes(name: str) -> int:
    """How many classes timm's weights of a model have."""
    import timm

    # For a name that timm doesn't know any number will do, because ``create_model`` then refuses the name.
    config = None
    if timm.is_model(name):
        config = timm.get_pretrained_cfg(name)
    return getattr(config, "num_classes", IMAGENET_CLASSES)


def _imagenet_names(vit: Any) -> list[str] | None:
    """The names of the classes, if timm's model has as many classes as a version of ImageNet."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    # By the number of classes: timm's configurations don't name the data.
    subset = infer_imagenet_subset(vit)
    if not subset:
        return None
    names: Any = ImageNetInfo(subset).label_descriptions()
    return names
