"""Exports a model as a folder that this package and timm's ``local-dir:`` and ``hf-hub:`` loaders can load."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from layershuffle.checkpoints.exported import (
    DESCRIPTION_FILE,
    MORE_WEIGHTS_FILE,
    WEIGHTS_FILE,
    Description,
    write_description,
)
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.model_card import ModelCard, scores_of
from layershuffle.checkpoints.training_data import class_names, trained_format
from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.models.create import ARGUMENTS
from layershuffle.models.fitting import classify_by_mean_of_heads, create_fitting, cut
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order
from layershuffle.results import ModelInfo, Results

LOAD = "layershuffle.load"
"""What loads every exported folder."""

USE_TIMM = """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:USER/NAME"
```

gives its logits in sequential order. Any other order runs in layershuffle:"""

USE_LAYERSHUFFLE = """

```python
from layershuffle import load

model = load("FOLDER").model
model(images, {order})
```
"""


def export(
    loaded: LoadedModel,
    folder: Path,
    *,
    order: Order | None = None,
    results: Sequence[Results] = (),
    license: str | None = None,
) -> None:
    """Write a model, what is known about it, and a model card to ``folder``.

    A model whose base order is a sequence of whole layers is written as a plain model with these layers. If timm can't
    run a model, ``create_model`` of timm refuses the folder and says why.

    Args:
        loaded: the model.
        folder: a new or empty folder.
        order: an order to write instead of the model's base order. The card then has the scores of this order alone.
        results: evaluations of the model, for the card.
        license: of the weights, for the card, which otherwise says nothing about it.

    Raises:
        UserError: if the order isn't one of whole layers, the folder is not empty, results are of another model, or the
            files can't be written.
    """
    # What can be wrong comes before the first file, so that a refused export leaves nothing behind.
    check_new(folder)
    scores = scores_of(loaded.info, results, order)
    loaded = _as_plain_as_possible(loaded, order)
    model = loaded.model
    obstacle = why_not_timm(model)
    described: dict[str, Any] = {}
    # timm names an architecture that it doesn't know in its error, so that its users read the reason there.
    if obstacle:
        described["architecture"] = f"timm can't run it, because {obstacle}; use {LOAD}"
    write_for_timm(loaded, model.vit, folder, described, license)
    _write_more_weights(model, folder)

    write_description(folder / DESCRIPTION_FILE, Description(loaded.info, loaded.data))
    card = ModelCard(
        title=folder.name,
        library="layershuffle" if obstacle else "timm",
        use=_use(model, obstacle),
        scores=scores,
        license=license,
        config_file="config.json",
    )
    write_whole(folder / "README.md", card.markdown(loaded))


def check_new(folder: Path) -> None:
    """Raise a UserError if ``folder`` is neither new nor empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: export to a new or empty folder")


def why_not_timm(model: OrderedViT) -> str | None:
    """Why timm can't run the model, or None if it can."""
    if model.choice:
        return "each image chooses its order"
    if model.encoding:
        return "its layers are told the positions at which they run"
    if model.order.whole_layers is None:
        return f"its order, {model.order}, is no sequence of whole layers"
    return None


def as_cut(info: ModelInfo, order: Order) -> ModelInfo:
    """What is known about a model that runs nothing but ``order`` of the layers of the model that ``info`` describes.

    These may themselves be copies of another model's layers.
    """
    if info.cut:
        order = order.over(Order(info.cut))
    return replace(info, cut=str(order))


def _as_plain_as_possible(loaded: LoadedModel, order: Order | None) -> LoadedModel:
    """The same model in the form that timm can run, if there is one.

    Args:
        loaded: the model.
        order: the only order that is wanted, or None for the base order.
    """
    model = loaded.model
    info = loaded.info

    # timm runs layers in the sequence in which they are written. So those of a model with another base order are
    # written as that order runs them, each as often as it does.
    has_other_base_order = bool(model.config.get("order")) and not model.choice
    if order is None and has_other_base_order and model.order.whole_layers:
        order = model.order
    if order is not None:
        model = cut(model, order)
        info = replace(as_cut(info, order), config=model.config)

    # timm's distilled models classify by the mean of two heads. One that ignores the second head here must give the
    # same logits there.
    if model.backbone.ignores_second_head:
        model = _averaging(model)
        info = replace(info, config=model.config)
    return replace(loaded, model=model, info=info)


def _averaging(model: OrderedViT) -> OrderedViT:
    """The same distilled model, classifying by the mean of two heads as timm does: one doubled, the other zero."""
    # The mean of a doubled classifier and one of zeros is the classifier itself, so that the logits stay the same.
    config = {**model.config, "head": "average"}
    averaging = create_fitting(model.state_dict(), "the model", **config).train(model.training)
    classify_by_mean_of_heads(averaging.vit)
    return averaging


def write_for_timm(
    loaded: LoadedModel, vit: nn.Module, folder: Path, described: Mapping[str, Any], license: str | None
) -> None:
    """Write the weights of timm's model, and the config.json from which timm makes it.

    Args:
        loaded: what is known about the model.
        vit: timm's model of it.
        folder: the folder.
        described: further entries of config.json. timm answers that it doesn't know an "architecture" of theirs.
        license: of the weights, if it is known.

    Raises:
        UserError: if the model can't be described, or the files can't be written.
    """
    from timm.models import save_for_hf

    config = loaded.model.config
    if config["norm_eps"] is not None:
        raise UserError("a model with norm_eps can't be exported: timm's configuration has no place for it")
    _describe_for_timm(loaded, vit, license)
    model_config = {"label_names": class_names(loaded.data, loaded.info.num_classes), **described}
    # The other arguments, such as the position, are ours, and timm would refuse them.
    timm_args = {name: value for name, value in config.items() if name not in ARGUMENTS}
    with _saying_what_fails(folder):
        save_for_hf(vit, str(folder), model_config=model_config, model_args=timm_args, safe_serialization=True)
        # safetensors lets nobody but the user read its files.
        (folder / WEIGHTS_FILE).chmod(0o644)


def _describe_for_timm(loaded: LoadedModel, vit: Any, license: str | None) -> None:
    """Complete the configuration that timm writes to config.json: how images are preprocessed, and the licence."""
    image_format = trained_format(loaded.model.image_format, loaded.data, str(loaded.info.source))
    size = image_format.size
    vit.pretrained_cfg.update(
        mean=image_format.mean,
        std=image_format.std,
        crop_pct=image_format.crop_pct,
        interpolation=image_format.interpolation,
        crop_mode=image_format.crop_mode,
        input_size=(len(image_format.mean), size, size),
        num_classes=loaded.info.num_classes,
        tag=loaded.info.method,
        license=license,  # timm has here that of its own weights.
    )


def _write_more_weights(model: OrderedViT, folder: Path) -> None:
    """Write what timm's models lack to a file of its own, so that timm still loads the other one."""
    more_weights = {}
    for name, value in model.state_dict().items():
        if not name.startswith("vit."):
            # safetensors refuses tensors whose values don't lie side by side.
            more_weights[name] = value.contiguous()
    if more_weights:
        path = folder / MORE_WEIGHTS_FILE
        with _saying_what_fails(folder):
            safetensors.torch.save_file(more_weights, path)
            path.chmod(0o644)


@contextmanager
def _saying_what_fails(folder: Path) -> Iterator[None]:
    """Raise a UserError if something can't be written to the folder meanwhile."""
    try:
        yield
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{folder} could not be written: {reason}") from error


def _use(model: OrderedViT, obstacle: str | None) -> str:
    """How to load the folder with timm and with this package, in Markdown."""
    # The example shows an order that no other package runs.
    text = USE_TIMM
    if obstacle:
        text = f"timm can't run this model, because {obstacle}. Use this package:"
    reversed_order = list(range(model.depth))[::-1]
    return text + USE_LAYERSHUFFLE.format(order=reversed_order)
