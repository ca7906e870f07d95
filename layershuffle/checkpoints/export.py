"""Exports a model as a folder that this package and timm's ``local-dir:`` and ``hf-hub:`` loaders can load."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch

from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole
from layershuffle.models.create import OWN, create_fitting, cut
from layershuffle.models.model import ImageFormat, OrderedViT
from layershuffle.models.weights import read_file
from layershuffle.results import tables
from layershuffle.results.record import Results

LOAD = "layershuffle.checkpoints.loading.load"
RECORD_FILE = "layershuffle.json"
POSITION_FILE = "layershuffle.safetensors"
"""Holds the weights that timm's models lack: of position encoding or prediction, and of choices of orders."""


def export(
    model: OrderedViT,
    record: dict[str, Any],
    data: dict[str, Any] | None,
    folder: Path,
    results: Sequence[Results] = (),
    license: str = "apache-2.0",
) -> None:
    """Write a model, its record and its data (see ``loading.LoadedModel``), and a model card to ``folder``.

    A model whose own order is a sequence of whole layers is written as a plain model with these layers, which timm can
    run. If timm can't run a model, ``create_model`` of timm refuses the folder and says why.

    Raises:
        UserError: if the folder is not empty, results are of another model, or the files can't be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is there already: export to a new or empty folder")
    for other in (found.model for found in results if found.model.get("sha256") != record["sha256"]):
        raise UserError(f"the results of {other.get('source')} are of another checkpoint than {record['source']}")
    only_here = why_only_here(model)
    if model.config.get("order") and not only_here:
        record = record | {"cut": str(model.order)}
        model = cut(model)
        record["config"] = model.config
    args = data.get("args") if isinstance(data, dict) else None
    names = ImageFormat._fields[3:] if isinstance(args, dict) else ()
    given = {name: args[name] for name in names if args.get(name) is not None}  # type: ignore[index, union-attr]
    image_format = model.image_format._replace(**given)._asdict()
    size = image_format.pop("size")
    pretrained_cfg: Any = model.vit.pretrained_cfg
    pretrained_cfg |= image_format | {
        "input_size": (len(image_format["mean"]), size, size),
        "num_classes": model.config["num_classes"],
        "tag": record.get("method"),
    }
    timm_args = {name: value for name, value in model.config.items() if name not in OWN}
    if model.config["norm_eps"] is not None:
        raise UserError("a model with norm_eps can't be exported: timm's configuration has no place for it")
    # timm answers that it doesn't know a model of this name.
    renamed = {"architecture": f"timm can't run it, because {only_here}; use {LOAD}"} if only_here else {}
    from timm.models import save_for_hf

    try:
        save_for_hf(model.vit, str(folder), model_config=renamed, model_args=timm_args, safe_serialization=True)
        own = {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith("vit.")}
        if own:
            safetensors.torch.save_file(own, folder / POSITION_FILE)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{folder} could not be written: {getattr(error, 'strerror', None) or error}") from error
    write_whole(folder / RECORD_FILE, json.dumps({"record": record, "data": data}, indent=1) + "\n")
    write_whole(folder / "README.md", card(model, record, folder.name, results, license))


def why_only_here(model: OrderedViT) -> str | None:
    """Why timm can't run the model, or None if it can."""
    if model.choice:
        return "each image chooses its order"
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


def card(model: OrderedViT, record: dict[str, Any], name: str, results: Sequence[Results], license: str) -> str:
    """The model card, in Markdown."""
    size = model.image_format.size
    mean, std = (", ".join(f"{value:.4g}" for value in part) for part in model.image_format[1:3])
    only_here = why_only_here(model)
    library = "layershuffle" if only_here else "timm"
    plain = """```python
import timm

model = timm.create_model("local-dir:FOLDER", pretrained=True)  # or "hf-hub:USER/NAME"
```

"""
    note = "gives its logits in sequential order. Any other order runs in layershuffle:"
    if only_here:
        plain, note = "", f"timm can't run this model, because {only_here}. Use this package:"
    elif model.encoding:
        note = "timm's model lacks the position encoding, so its logits are not this model's. Use this package:"
    elif model.backbone.ignores_second_head:
        note = "timm averages this model's two heads; it was trained with the class token's alone. Use this package:"
    merged = ""
    if record.get("merged"):
        sources = ", ".join(source["sha256"][:12] for source in record["merged"]["sources"])
        merged = f"Merged: its layers come from the checkpoints {record['merged']['layers']} of {sources}.\n"
    if record.get("cut"):
        merged += f"Its layers are copies of those of the trained model, in the order {record['cut']}.\n"
    scores = "".join(
        f"{found.data['name']}, {found.data['images']} images ({found.data.get('split')}):\n\n"
        f"{tables.markdown(header, rows)}\n"
        for found in results
        for header, rows in tables.of(found).values()
    )
    return f"""---
library_name: {library}
license: {license}
pipeline_tag: image-classification
tags: [image-classification, timm, layershuffle]
---
# {name}

{model.config["name"]}, {model.config["num_classes"]} classes, fine-tuned by the method {record.get("method")} with
[LayerShuffle](https://arxiv.org/abs/2407.04513):
order sampler `{record.get("sampler")}`, position `{model.config["position"]}`, seed {record.get("seed")}.
{merged}
## Use

{plain}{note}

```python
from layershuffle.checkpoints.loading import load

model = load("FOLDER").model
model(images, {list(range(model.depth))[::-1]})
```

Images: RGB or grey in 0..1, {size} x {size} pixels (resized and cropped as
config.json says), minus mean ({mean}), divided by standard deviation ({std}).

## Accuracy

{f"{scores}{tables.ONE_SEED}" if scores else "Not measured."}
"""
