"""Exports a model for others, and compares what was written with the original."""

import runpy
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from layershuffle.api.arguments import check_choice
from layershuffle.api.data import DataLike
from layershuffle.api.export_check import SAMPLED, difference, difference_of_programs, images_to_compare, random_orders
from layershuffle.api.quantized_export import Quantization, as_quantization, images_to_check, quantize_export
from layershuffle.api.study import ModelLike, as_loaded
from layershuffle.checkpoints import export as exporting
from layershuffle.checkpoints.exported import WIDE_FILE
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load
from layershuffle.checkpoints.program_export import export_programs, write_quantized_card
from layershuffle.checkpoints.quantized import Quantized
from layershuffle.checkpoints.wide_export import export_wide, what_is_merged
from layershuffle.choices import ExportFormat, Normalise, ProgramFormat, Quantize, Target
from layershuffle.data import Preprocess
from layershuffle.errors import UserError
from layershuffle.models.widen import has_groups, why_not_wide
from layershuffle.orders.order import Order, OrderLike
from layershuffle.results import Results

ORIGINAL = "float32"
"""The folder within an export that holds the programs before they are quantized, and is removed at the end."""
TOLERANCE = 1e-4
"""The largest difference between the logits of a model and of its export, in float32.

Another sequence of additions changes the last of some seven digits; a wrong layer or pixel changes the first ones.
"""


@dataclass(frozen=True)
class ExportedModel:
    """A folder with a model that others can use.

    Attributes:
        folder: the folder.
        format: the format of its files.
        difference: the largest difference between its logits and those of the original.
        compared_on: the images that they were compared on, in words.
        timm_refuses: why timm can't run a model that was exported for it; None if it can.
        merged: what became of the layers of groups, such as "12 attentions as 4"; None if none were merged.
        not_merged: why the groups of a program's order are not merged; None if they are, or if there are none.
        quantized: how the program was quantized and what it lost; ``difference`` is then that of the program before.
            None if it is not quantized.
    """

    folder: Path
    format: ExportFormat
    difference: float
    compared_on: str
    timm_refuses: str | None = None
    merged: str | None = None
    not_merged: str | None = None
    quantized: Quantized | None = None

    def __fspath__(self) -> str:
        """The path of the folder: an exported model stands wherever such a folder is taken."""
        return str(self.folder)


def export(
    model: ModelLike,
    folder: str | Path,
    *,
    order: OrderLike | None = None,
    format: ExportFormat = "timm",
    per_layer: bool = False,
    normalise: Normalise = "inside",
    target: Target = "cpu",
    quantize: Quantize | Quantization | None = None,
    results: Sequence[Results | str | Path] = (),
    license: str | None = None,
    command: str | None = None,
    data: DataLike = None,
) -> ExportedModel:
    """Write a folder with a model, and a model card.

    What was written is compared with the original on images of the data set, and removed if it differs.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned. This package
            must have trained it.
        folder: a new folder.
        order: the order to run, such as "first(6)"; by default the model's own. The layers of a group, such as
            "(0a+1a+2a)", are merged into a wider one. If there are groups or halves of layers, the format "timm" writes
            a file that runs them, beside the weights; see ``layershuffle.models.wide_vit``.
        format: "timm" writes safetensors and a configuration that timm's ``local-dir:`` and ``hf-hub:`` loaders read.
            The other formats are programs that need neither timm nor this package; "aoti" is compiled for the
            processor of this machine.
        per_layer: whether programs are written for single layers, which run in any order.
        normalise: whether programs take uint8 pixels ("inside") or what their caller has normalised ("beside").
        target: the device that programs will run on.
        quantize: makes ONNX programs smaller, by "int8" or "fp16". They are checked on test images: a ``Quantization``
            says on how many, and what they may lose.
        results: results of the model, or their files, for the model card.
        license: the license of the weights, for the model card, which otherwise says nothing about it.
        command: the command that trained the model, for the model card.
        data: the data set whose test images to compare on, or the name of its config; by default the one the model was
            trained on. Without images, random pixels are compared.

    Raises:
        UserError: if there is no such model, it can't be exported like this, the export's logits differ, or a quantized
            program loses too much.
    """
    check_choice("format", format, ExportFormat)
    check_choice("normalise", normalise, Normalise)
    check_choice("target", target, Target)
    folder = Path(folder)
    loaded = replace(as_loaded(model), command=command)
    only_order = None if order is None else loaded.check(order)
    _check(loaded, only_order, format, per_layer, target)
    quantization = as_quantization(quantize)
    if quantization:
        quantization.check(format, target)
    # Read now, so that results that can't be read end this before anything is written.
    for_card = [source if isinstance(source, Results) else Results.load(source) for source in results]
    exporting.check_new(folder)

    images, compared_on = images_to_compare(data, loaded)
    checked = images_to_check(quantization, data, loaded) if quantization else None
    quantized = None
    try:
        if format != "timm":
            loaded.model.to(target)
            # What is going to be quantized is written and compared in float32 first.
            program_folder = folder / ORIGINAL if quantization else folder
            program = _Program(format, per_layer, normalise)
            written = _export_program(loaded, program_folder, only_order, program, for_card, license, images)
        elif only_order is not None and only_order.whole_layers is None:
            written = _export_wide(loaded, folder, only_order, for_card, license, images)
        else:
            written = _export_for_timm(loaded, folder, only_order, for_card, license, images)
        # Written like this, so that NaN is refused too.
        if not written.difference <= TOLERANCE:
            raise UserError(
                f"the export's logits differ from the original's by {written.difference:.2g}, so it was not kept"
            )
        if quantization and checked:
            quantized = quantize_export(loaded, folder / ORIGINAL, folder, only_order, quantization, checked)
            single_order = None if per_layer else only_order or loaded.order
            write_quantized_card(loaded, folder, quantized, order=single_order, results=for_card, license=license)
            shutil.rmtree(folder / ORIGINAL)
    # BaseException is also Ctrl-C: a folder that is there must be one that was checked.
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return ExportedModel(folder, format, compared_on=compared_on, quantized=quantized, **written._asdict())


class _Written(NamedTuple):
    """What ``ExportedModel`` says of the files that were written."""

    difference: float
    timm_refuses: str | None = None
    merged: str | None = None
    not_merged: str | None = None


class _Program(NamedTuple):
    """What a program is like, as ``export`` takes it."""

    format: ProgramFormat
    per_layer: bool
    normalise: Normalise


def _check(loaded: LoadedModel, order: Order | None, format: ExportFormat, per_layer: bool, target: Target) -> None:
    """Raise a UserError if a model can't be exported like this; the arguments are those of ``export``."""
    if loaded.info.method is None:
        raise UserError(f"{loaded.info.source} is not a checkpoint of layershuffle train")
    if per_layer and (order is not None or format == "timm"):
        raise UserError("programs of single layers run any order: name another format than timm, and no order")
    if per_layer and any(unit.half for unit in loaded.order.units):
        raise UserError(
            f"programs of single layers run whole layers, and the model's base order, {loaded.order}, runs halves: "
            "leave out --per_layer"
        )
    if format != "timm" and loaded.model.choice and order is None and not per_layer:
        raise UserError("each image chooses its order, which a program can't do: name one order")
    if target == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU to export for here: export for the CPU")


def _export_for_timm(
    loaded: LoadedModel,
    folder: Path,
    order: Order | None,
    results: Sequence[Results],
    license: str | None,
    images: Tensor,
) -> _Written:
    """Write timm's files, and compare timm's model with the original on ``images``."""
    model = loaded.model.cpu().eval()
    exporting.export(loaded, folder, order=order, results=results, license=license)
    exported = load(str(folder)).model.eval()
    timm_refuses = exporting.why_not_timm(exported)
    normalise = Preprocess(*model.image_format)

    # The order is part of what was exported.
    def run(batch: Tensor, _: Order | None) -> Tensor:
        inputs = normalise(batch)
        if timm_refuses:
            return exported(inputs).logits
        # timm runs its own model without our wrapper, so that is what is compared.
        logits: Tensor = exported.vit(inputs)
        return logits

    return _Written(difference(model, run, [order], images), timm_refuses)


def _export_wide(
    loaded: LoadedModel,
    folder: Path,
    order: Order,
    results: Sequence[Results],
    license: str | None,
    images: Tensor,
) -> _Written:
    """Write a wide model, and compare what its own file makes of it with the original on ``images``."""
    model = loaded.model.cpu().eval()
    export_wide(loaded, folder, order, results=results, license=license)
    wide = runpy.run_path(str(folder / WIDE_FILE))["load"](folder)
    normalise = Preprocess(*model.image_format)

    def run(batch: Tensor, _: Order | None) -> Tensor:
        logits: Tensor = wide(normalise(batch))
        return logits

    return _Written(difference(model, run, [order], images), merged=what_is_merged(order))


def _export_program(
    loaded: LoadedModel,
    folder: Path,
    only_order: Order | None,
    program: _Program,
    results: Sequence[Results],
    license: str | None,
    images: Tensor,
) -> _Written:
    """Write a program, or one for each layer, and compare it with the model on ``images``."""
    order = loaded.order if only_order is None else only_order
    export_programs(
        loaded,
        folder,
        program.format,
        order=None if program.per_layer else order,
        normalises=program.normalise == "inside",
        results=results,
        license=license,
    )
    # A program of one order has its groups merged where that is possible.
    merged = None
    not_merged = None
    if has_groups(order) and not program.per_layer:
        not_merged = why_not_wide(loaded.model, order)
        if not not_merged:
            merged = what_is_merged(order)
    orders = [order]
    if program.per_layer:
        orders += random_orders(order, SAMPLED)
    largest_difference = difference_of_programs(loaded.model, folder, orders, images)
    return _Written(largest_difference, merged=merged, not_merged=not_merged)
