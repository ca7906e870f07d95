"""Exports a model as a folder that timm's ``local-dir:`` and ``hf-hub:`` loaders read, and this package too."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

from layershuffle.data.preprocessing import Preprocess
from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole
from layershuffle.models.create import create_fitting
from layershuffle.models.model import OrderedViT
from layershuffle.models.weights import read_file
from layershuffle.results import tables
from layershuffle.results.record import Results

RECORD_FILE = "layershuffle.json"
POSITION_FILE = "layershuffle.safetensors"
"""Holds what timm's models lack: position encoding or prediction."""


def export(
    model: OrderedViT,
    record: dict[str, Any],
    data: dict[str, Any] | None,
    folder: Path,
    results: Sequence[Results] = (),
    license: str = "apache-2.0",
) -> None:
    """Write ``model``, its record and its data (see ``loading.LoadedModel``), and a model card to ``folder``.

    Raises:
        UserError: (a ValueError) if the folder holds anything, or a results file is of another model.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: export to a new or empty folder")
    for found in results:
        if found.model.get("sha256") != record["sha256"]:
            raise UserError(
                f"the results of {found.model.get('source')} are of another checkpoint than {record['source']}"
            )
    preprocess = Preprocess(*model.image_format)
    size, channels = model.image_format.size, len(preprocess.mean)
    pretrained_cfg: Any = model.vit.pretrained_cfg
    pretrained_cfg |= {
        "input_size": (channels, size, size),
        "mean": tuple(preprocess.mean.flatten().tolist()),
        "std": tuple(preprocess.std.flatten().tolist()),
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "num_classes": model.config["num_classes"],
        "tag": record.get("method"),
    }
    ours = ("name", "num_classes", "position", "positions", "head", "norm_eps")
    timm_args = {name: value for name, value in model.config.items() if name not in ours}
    if model.config["norm_eps"] is not None:
        raise UserError("a model with norm_eps can't be exported: timm's configuration has no place for it")
    from timm.models import save_for_hf

    try:
        save_for_hf(model.vit, str(folder), model_args=timm_args, safe_serialization=True)
        own = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("vit.")}
        if own:
            safetensors.torch.save_file(own, folder / POSITION_FILE)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error.strerror}") from error
    write_whole(folder / RECORD_FILE, json.dumps({"record": record, "data": data}, indent=1) + "\n")
    write_whole(folder / "README.md", card(model, record, folder.name, results, license))


def read(folder: Path) -> tuple[OrderedViT, dict[str, Any], dict[str, Any] | None]:
    """The model, the record and the data that ``export`` wrote to ``folder``.

    Raises:
        UserError: if they are damaged or don't fit each other.
    """
    record, data = read_record(folder)
    weights = {f"vit.{name}": value for name, value in read_file(folder / "model.safetensors").items()}
    if record["config"]["position"] != "none":
        weights |= read_file(folder / POSITION_FILE)
    return create_fitting(weights, str(folder), **record["config"]), record, data


def read_record(folder: Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The record and the data that ``export`` wrote to ``folder``, without the model; raises UserError if damaged."""
    try:
        content = read_json(folder / RECORD_FILE, what="a record of export")
        _ = content["record"]["config"]["position"]
        return content["record"], content["data"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / RECORD_FILE} is damaged: {error}") from error


def card(model: OrderedViT, record: dict[str, Any], name: str, results: Sequence[Results], license: str) -> str:
    """The model card, in Markdown."""
    method, position = record.get("method"), model.config["position"]
    preprocess = Preprocess(*model.image_format)
    mean, std = (
        ", ".join(f"{v:.4g}" for v in values.flatten().tolist()) for values in (preprocess.mean, preprocess.std)
    )
    lines = ["---", "library_name: timm", f"license: {license}", "pipeline_tag: image-classification"]
    lines += ["tags: [image-classification, timm, layershuffle]", "---", f"# {name}", ""]
    lines += [f"{model.config['name']}, {model.config['num_classes']} classes, fine-tuned by the method {method} with"]
    lines += ["[LayerShuffle](https://arxiv.org/abs/2407.04513): "]
    lines += [f"order sampler `{record.get('sampler')}`, position `{position}`, seed {record.get('seed')}."]
    if record.get("merged"):
        sources = ", ".join(source["sha256"][:12] for source in record["merged"]["sources"])
        lines += [f"Merged: its layers come from the checkpoints {record['merged']['layers']} of {sources}."]
    lines += ["", "## Use", "", "```python", "import timm", ""]
    lines += ['model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:USER/NAME"', "```", ""]
    if model.encoding:
        lines += [
            "timm's model lacks the position encoding, so that its logits are not this model's. Use this package:"
        ]
    elif model.backbone.ignores_second_head:
        lines += [
            "timm averages this model's two heads; it was trained with the class token's alone. Use this package:"
        ]
    else:
        lines += ["gives its logits in sequential order. Any other order runs in layershuffle:"]
    lines += ["", "```python", "from layershuffle.loading import load", "", 'model = load("FOLDER").model']
    lines += [f"model(images, {list(range(model.depth))[::-1]})", "```", ""]
    lines += [
        f"Images: RGB or grey in 0..1, {preprocess.size} x {preprocess.size} pixels (shorter side resized, centre"
    ]
    lines += [f"cropped), minus mean ({mean}), divided by standard deviation ({std}).", "", "## Accuracy", ""]
    for found in results:
        made = f"{found.data['name']}, {found.data['images']} images ({found.data.get('split')})"
        for header, rows in tables.of(found).values():
            lines += [f"{made}:", "", tables.markdown(header, rows)]
    if not results:
        lines += ["Not measured."]
    return "\n".join(lines).rstrip() + "\n"
