"""Exports models as programs that run without this package and timm: by torch.export, ONNX and AOTInductor."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from layershuffle.checkpoints.export import as_cut, check_new
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.model_card import ModelCard, scores_of
from layershuffle.checkpoints.program_parts import Part, part_in_one_order, parts_in_any_order
from layershuffle.checkpoints.programs import MANIFEST, SUFFIXES, read_manifest, require
from layershuffle.checkpoints.quantized import Quantized
from layershuffle.checkpoints.training_data import class_names, trained_format
from layershuffle.choices import ProgramFormat
from layershuffle.data.preprocessing import Preprocess
from layershuffle.errors import UserError
from layershuffle.files import write_whole
from layershuffle.models.image_format import ImageFormat
from layershuffle.orders.order import Order
from layershuffle.private_apis import list_onnx_functions_once
from layershuffle.results import Results

USE: dict[ProgramFormat, str] = {
    "torch-export": """import torch

logits = torch.export.load("FOLDER/{file}").module()(images)
""",
    "onnx": """import onnxruntime

logits = onnxruntime.InferenceSession("FOLDER/{file}").run(None, {{"images": images.numpy()}})[0]
""",
    "aoti": """import torch

logits = torch._inductor.aoti_load_package("FOLDER/{file}")(images)
""",
}
"""How to run a program of one order."""

USE_LAYERS = """from layershuffle.checkpoints.programs import Programs

logits = Programs("FOLDER")(images, "2 0 1")  # whole layers in any order
"""
"""How to run the programs of single layers."""

USE_ONNX_LAYERS = """import numpy
import onnxruntime

embed = onnxruntime.InferenceSession("FOLDER/embed.onnx")
classify = onnxruntime.InferenceSession("FOLDER/classify.onnx")
layers = [onnxruntime.InferenceSession(f"FOLDER/layer{{number}}.onnx") for number in range({depth})]

tokens, *context = embed.run(None, {{"images": images.numpy()}})
for position, number in enumerate({order}):  # any order
    names = [value.name for value in layers[number].get_inputs()]
    inputs = [tokens, numpy.array(position), *context]
    (tokens,) = layers[number].run(None, dict(zip(names, inputs)))
(logits,) = classify.run(None, {{"tokens": tokens}})
"""
"""The same without this package."""


def export_programs(
    loaded: LoadedModel,
    folder: Path,
    form: ProgramFormat,
    *,
    order: Order | None = None,
    normalises: bool = True,
    results: Sequence[Results] = (),
    license: str | None = None,
) -> None:
    """Write a model to ``folder`` as programs for the device that it is on, their manifest, and a model card.

    With an order it is one program, from images [batch, channels, size, size] of any batch size to logits
    [batch, classes]. The layers of its groups are merged if ``why_not_wide`` has nothing against it. Without an order,
    whoever calls the programs decides on it: they are those of ``LayerPrograms``.

    Args:
        loaded: a model in evaluation mode.
        folder: a new folder.
        form: the format of the programs.
        order: the only order that the program runs, or None.
        normalises: whether the program takes uint8 images and normalises them; otherwise it takes float32 ones which
            the manifest's mean and standard deviation have normalised. Resizing is left to whoever reads the images.
        results: evaluations of the model, for the card.
        license: of the weights, for the card, which otherwise says nothing about it.

    Raises:
        UserError: if the folder is not empty, a package is missing, results are of another model, or a file can't be
            written.
    """
    # What can be wrong is checked before the first program is written, which may take minutes to compile.
    check_new(folder)
    if form == "onnx":
        require("onnxscript")
        require("onnxruntime")
        list_onnx_functions_once()
    scores = scores_of(loaded.info, results, order)
    if order is not None:
        loaded = replace(loaded, info=as_cut(loaded.info, order))

    model = loaded.model
    device = next(model.parameters()).device
    image_format = trained_format(model.image_format, loaded.data, str(loaded.info.source))
    preprocess = Preprocess(*image_format).to(device) if normalises else None
    dtype = torch.uint8 if normalises else torch.float32
    # torch.export would take a batch of one image for a constant, and the program then for no other batch.
    images = torch.zeros(2, *model.image_shape, dtype=dtype, device=device)
    if order is None:
        parts = parts_in_any_order(model, preprocess, images)
    else:
        parts = {"model": part_in_one_order(model, order, preprocess, images)}

    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            _write(form, folder / f"{name}{SUFFIXES[form]}", part)
    except OSError as error:
        raise UserError(f"{folder} could not be written: {error.strerror or error}") from error

    # The manifest comes after the programs that it names: a folder without one is not finished.
    manifest = _manifest(loaded, form, order, image_format, images)
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    _write_card(loaded, folder, manifest, scores, license)


def write_quantized_card(
    loaded: LoadedModel,
    folder: Path,
    quantized: Quantized,
    *,
    order: Order | None = None,
    results: Sequence[Results] = (),
    license: str | None = None,
) -> None:
    """Write the model card of programs that were quantized, and enter into their manifest what is known about them.

    Args:
        loaded: the model that ``export_programs`` got.
        folder: the quantized programs, with the manifest of the original ones.
        quantized: what is known about them.
        order: see ``export_programs``, also for the others.
        results: evaluations of the model, for the card.
        license: of the weights.
    """
    manifest = {**read_manifest(folder), "quantized": quantized.to_json()}
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    scores = scores_of(loaded.info, results, order)
    if results:
        scores = f"Before the program was quantized:\n\n{scores}"
    if order is not None:
        loaded = replace(loaded, info=as_cut(loaded.info, order))
    _write_card(loaded, folder, manifest, scores, license, quantized.markdown())


def _write_card(
    loaded: LoadedModel,
    folder: Path,
    manifest: dict[str, Any],
    scores: str,
    license: str | None,
    quantized: str = "",
) -> None:
    """Write the model card; ``scores`` and ``quantized`` are sections in Markdown."""
    card = ModelCard(
        title=folder.name,
        library="onnx" if manifest["format"] == "onnx" else "pytorch",
        use=_use(manifest, loaded.model.depth),
        scores=scores.rstrip() + quantized,
        license=license,
        config_file=MANIFEST,
        normalises=_normalises(manifest),
    )
    write_whole(folder / "README.md", card.markdown(loaded))


def _manifest(
    loaded: LoadedModel, form: ProgramFormat, order: Order | None, image_format: ImageFormat, images: Tensor
) -> dict[str, Any]:
    """The content of the manifest."""
    model = loaded.model
    suffix = SUFFIXES[form]
    files: dict[str, Any] = {"model": f"model{suffix}"}
    if order is None:
        layers = [f"layer{layer}{suffix}" for layer in range(model.depth)]
        files = {"embed": f"embed{suffix}", "layers": layers, "classify": f"classify{suffix}"}
    return {
        "format": form,
        "device": images.device.type,
        "files": files,
        "images": {"dtype": _name(images.dtype), "shape": ["batch", *model.image_shape], **image_format._asdict()},
        "classes": class_names(loaded.data, loaded.info.num_classes),
        "order": str(model.order if order is None else order),
        "record": loaded.info.to_json(),
    }


def _normalises(manifest: dict[str, Any]) -> bool:
    """Whether programs normalise their images, which are then uint8."""
    return manifest["images"]["dtype"] == "uint8"


def _use(manifest: dict[str, Any], depth: int) -> str:
    """How to run the programs of a manifest, in Markdown."""
    form: ProgramFormat = manifest["format"]
    files = manifest["files"]
    if "model" in files:
        code = USE[form].format(file=files["model"])
    elif form == "onnx":
        # Any order would do, and this one surely isn't the base order.
        code = USE_ONNX_LAYERS.format(depth=depth, order=list(range(depth))[::-1])
    else:
        code = USE_LAYERS
    dtype = manifest["images"]["dtype"]
    shape = ", ".join(map(str, manifest["images"]["shape"]))
    takes = f"`images` are {dtype} [{shape}]"
    if _normalises(manifest):
        takes += ", which the program scales and normalises."
    else:
        takes += ", scaled and normalised by its caller."
    return f"```python\n{code}```\n\n{takes}\n"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.no_grad()
def _write(form: ProgramFormat, path: Path, part: Part) -> None:
    """Write a part as a program that takes batches of any size."""
    # The first dimension of these inputs is the batch. A position has no dimensions, and the context is the same for
    # all images.
    batch = torch.export.Dim("batch")
    shapes: list[dict[int, Any] | None] = []
    for name in part.inputs:
        has_batch = name in ("images", "tokens")
        shapes.append({0: batch} if has_batch else None)

    module = part.module.eval()
    if form == "onnx":
        _write_onnx(path, module, part, tuple(shapes))
        return
    exported = torch.export.export(module, part.example, dynamic_shapes=tuple(shapes))
    if form == "aoti":
        torch._inductor.aoti_compile_and_package(exported, package_path=str(path))
    else:
        torch.export.save(exported, path)


def _write_onnx(path: Path, module: nn.Module, part: Part, shapes: tuple[dict[int, Any] | None, ...]) -> None:
    """Write the module of a part as an ONNX program; ``shapes`` are the dimensions of its inputs that can vary."""
    program = torch.onnx.export(
        module,
        part.example,
        dynamo=True,
        dynamic_shapes=shapes,
        input_names=part.inputs,
        output_names=part.outputs,
        verbose=False,
    )
    assert program is not None
    # The exporter notes the lines of Python that each node comes from, with the paths of this machine. In a small
    # program they are a third of the file.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
    program.save(path)
