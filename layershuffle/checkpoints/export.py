"""Exports a model as a folder that this package and timm's ``local-dir:`` and ``hf-hub:`` loaders can load."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole
from layershuffle.models.create import OWN, create_fitting, cut
from layershuffle.models.model import ImageFormat, OrderedViT
from layershuffle.models.weights import read_file
from layershuffle.orders.order import Order
from layershuffle.results import Results, tables

LOAD = "layershuffle.load"
RECORD_FILE = "layershuffle.json"
POSITION_FILE = "layershuffle.safetensors"
"""Holds the weights that timm's models lack: of position encoding or prediction, and of choices of orders."""


def export(
    model: OrderedViT,
    record: dict[str, Any],
    data: dict[str, Any] | None,
    folder: Path,
    results: Sequence[Results] = (),
    license: str | None = None,
    order: Order | None = None,
) -> None:
    """Write a model, its record and its data (see ``loading.LoadedModel``), and a model card to ``folder``.

    A model whose base order is a sequence of whole layers is written as a plain model with these layers. If timm can't
    run a model, ``create_model`` of timm refuses the folder and says why.

    Args:
        results: evaluations of the model, for the card.
        license: of the weights, for the card, which otherwise says nothing about it.
        order: an order to write instead of the model's own. The card then has the scores of this order alone.

    Raises:
        UserError: if the order isn't one of whole layers, the folder is not empty, results are of another model, or the
            files can't be written.
    """
    check_new(folder)
    found = scores(record, results, order)
    if order is not None or (model.config.get("order") and not model.choice and model.order.whole_layers):
        order = model.order if order is None else order
        model = cut(model, order)
        record = as_cut(record, order) | {"config": model.config}
    if model.backbone.ignores_second_head:
        model = _averaging(model)
        record = record | {"config": model.config}
    images = image_format(model, data)._asdict()
    size = images.pop("size")
    pretrained_cfg: Any = model.vit.pretrained_cfg
    pretrained_cfg |= images | {
        "input_size": (len(images["mean"]), size, size),
        "num_classes": model.config["num_classes"],
        "tag": record.get("method"),
        "license": license,  # timm has here that of its own weights
    }
    timm_args = {name: value for name, value in model.config.items() if name not in OWN}
    if model.config["norm_eps"] is not None:
        raise UserError("a model with norm_eps can't be exported: timm's configuration has no place for it")
    only_here = why_only_here(model)
    # timm answers that it doesn't know a model of this name.
    described: dict[str, Any] = {"label_names": class_names(data, model)}
    if only_here:
        described["architecture"] = f"timm can't run it, because {only_here}; use {LOAD}"
    from timm.models import save_for_hf

    try:
        save_for_hf(model.vit, str(folder), model_config=described, model_args=timm_args, safe_serialization=True)
        own = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("vit.")}
        if own:
            safetensors.torch.save_file(own, folder / POSITION_FILE)
        for path in folder.glob("*.safetensors"):  # which safetensors writes for the user's eyes only
            path.chmod(0o644)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} could not be written: {getattr(error, 'strerror', None) or error}") from error
    write_whole(folder / RECORD_FILE, json.dumps({"record": record, "data": data}, indent=1) + "\n")
    use, library = _use(model, only_here), "layershuffle" if only_here else "timm"
    write_whole(folder / "README.md", card(model, record, folder.name, use, found, license, library, "config.json"))


def class_names(data: Any, model: OrderedViT) -> list[str] | None:
    """The class names that the record of a checkpoint's data holds, if there is one for each of the model's classes."""
    names: Any = data.get("classes") if isinstance(data, dict) else None
    fits = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if fits and len(names) == model.config["num_classes"] else None


def check_new(folder: Path) -> None:
    """Raise a UserError if there is something at ``folder`` already."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: export to a new or empty folder")


def as_cut(record: dict[str, Any], order: Order) -> dict[str, Any]:
    """The record of a model that runs nothing but ``order``, whose layers may already be copies of another model's."""
    return record | {"cut": str(order.over(Order(record["cut"])) if record.get("cut") else order)}


def _averaging(model: OrderedViT) -> OrderedViT:
    """The same distilled model, classifying by the mean of two heads as timm does: one doubled, the other zero."""
    model = create_fitting(model.state_dict(), "the model", **model.config | {"head": "average"}).train(model.training)
    vit: Any = model.vit
    with torch.no_grad():
        for parameter in vit.head.parameters():
            parameter *= 2
        for parameter in vit.head_dist.parameters():
            parameter.zero_()
    return model


def why_only_here(model: OrderedViT) -> str | None:
    """Why timm can't run the model, or None if it can."""
    if model.choice:
        return "each image chooses its order"
    if model.encoding:
        return "its layers are told the positions at which they run"
    if model.order.whole_layers is None:
        return f"its order, {model.order}, is no sequence of whole layers"
    return None


def read(folder: Path) -> tuple[OrderedViT, dict[str, Any], dict[str, Any] | None]:
    """Read the model, the record and the data that ``export`` wrote to ``folder``; raises UserError if damaged."""
    record, data = read_record(folder)
    weights = {f"vit.{name}": value for name, value in read_file(folder / "model.safetensors").items()}
    if record["config"]["position"] != "none" or "choices" in record["config"]:
        weights |= read_file(folder / POSITION_FILE)
    return create_fitting(weights, str(folder), **record["config"]), record, data


def read_record(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Read the record and the data that ``export`` wrote to ``folder``; raises UserError if damaged."""
    try:
        content = read_json(folder / RECORD_FILE, what="a record of export")
        _ = content["record"]["config"]["position"]
        return content["record"], content["data"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD_FILE} is damaged: {error}") from error


def scores(record: dict[str, Any], results: Sequence[Results], order: Order | None) -> str:
    """The scores in ``results`` as Markdown: those of ``order``, or all if it is None.

    Raises UserError if they are of another checkpoint than ``record``, or cut from it to other layers.
    """
    for other in (found.model for found in results):
        if (other.sha256, other.cut) != (record.get("sha256"), record.get("cut")):
            raise UserError(f"the results of {other.source} are of another checkpoint than {record['source']}")
    if order is not None:
        results = [
            replace(found, scores=kept, measures=())
            for found in results
            if (kept := [score for score in found.scores if score.order and Order(score.order) == order][:1])
        ]
        results = [
            replace(found, scores=[replace(found.scores[0], protocol="given", variant={"order": str(order)})])
            for found in results
        ]
    text = "".join(
        f"{found.data.name}, {found.data.images} images ({found.data.split}):\n\n{tables.markdown(header, rows)}\n"
        for found in results
        for header, rows in tables.of(found).values()
    )
    if text:
        return f"{text}{tables.ONE_SEED}"
    return "Not measured." if order is None else f"Not measured in the order {order}."


def image_format(model: OrderedViT, data: dict[str, Any] | None) -> ImageFormat:
    """The images that the model takes, resized as those of ``data`` are, the data that it was trained on."""
    args = data.get("args") if isinstance(data, dict) else None
    names = ImageFormat._fields[3:] if isinstance(args, dict) else ()
    given = {name: args[name] for name in names if args.get(name) is not None}  # type: ignore[index, union-attr]
    return model.image_format._replace(**given)


def _use(model: OrderedViT, only_here: str | None) -> str:
    """How to load the folder with timm and with this package, in Markdown."""
    plain = """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:USER/NAME"
```

"""
    note = "gives its logits in sequential order. Any other order runs in layershuffle:"
    if only_here:
        plain, note = "", f"timm can't run this model, because {only_here}. Use this package:"
    return f"""{plain}{note}

```python
from layershuffle.checkpoints.loading import load

model = load("FOLDER").model
model(images, {list(range(model.depth))[::-1]})
```
"""


def card(
    model: OrderedViT,
    record: dict[str, Any],
    name: str,
    use: str,
    scores: str,
    license: str | None,
    library: str,
    config: str,
    normalises: bool = False,
) -> str:
    """The model card, in Markdown.

    ``use`` and ``scores`` are sections of it, ``config`` is the file with the resizing, and ``normalises`` says whether
    the model itself normalises its images.
    """
    size = model.image_format.size
    mean, std = (", ".join(f"{value:.4g}" for value in part) for part in model.image_format[1:3])
    values = "" if normalises else f" in 0..1, minus mean ({mean}), divided by standard deviation ({std})"
    merged = ""
    if record.get("merged"):
        sources = ", ".join(source["sha256"][:12] for source in record["merged"]["sources"])
        merged = f"Merged: its layers come from the checkpoints {record['merged']['layers']} of {sources}.\n"
    if record.get("cut"):
        merged += f"It runs the layers of the trained model in the order {record['cut']}.\n"
    return f"""---
library_name: {library}
{f"license: {license}{chr(10)}" if license else ""}pipeline_tag: image-classification
tags: [image-classification, timm, layershuffle]
---
# {name}

{model.config["name"]}, {model.config["num_classes"]} classes, fine-tuned by the method {record.get("method")} with
[LayerShuffle](https://arxiv.org/abs/2407.04513):
order sampler `{record.get("sampler")}`, position `{model.config["position"]}`, seed {record.get("seed")}.
{merged}
## Use

{use}
Images: {"RGB" if len(model.image_format.mean) == 3 else "grey"}{values}, {size} x {size} pixels, resized and cropped as
{config} says.

## Accuracy

{scores}
"""
