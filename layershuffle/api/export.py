"""Exports a model for others, and compares what was written with the original."""

import logging
import runpy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from layershuffle.api.arguments import check_choice
from layershuffle.api.data import DataLike, as_data
from layershuffle.api.study import ModelLike, as_loaded
from layershuffle.checkpoints import export as exporting
from layershuffle.checkpoints.exported import WIDE_FILE
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load
from layershuffle.checkpoints.program_export import export_programs
from layershuffle.checkpoints.programs import Programs
from layershuffle.checkpoints.wide_export import export_wide, what_is_merged
from layershuffle.choices import ExportFormat, Normalise, ProgramFormat, Target
from layershuffle.data import Preprocess
from layershuffle.errors import UserError
from layershuffle.models import OrderedViT
from layershuffle.models.widen import has_groups, why_not_wide
from layershuffle.orders.order import Order, OrderLike, seeded
from layershuffle.plurals import counted
from layershuffle.results import Results

logger = logging.getLogger(__name__)

Run = Callable[[Tensor, Order | None], Tensor]
"""What was exported: a function of uint8 images and an order that returns logits."""

TOLERANCE = 1e-4
"""The largest difference between the logits of a model and of its export, in float32.

Another sequence of additions changes the last of some seven digits; a wrong layer or pixel changes the first ones.
"""
COMPARED = 8
"""How many images the two are compared on."""
SAMPLED = 3
"""In how many random orders the programs of single layers are compared."""


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
    """

    folder: Path
    format: ExportFormat
    difference: float
    compared_on: str
    timm_refuses: str | None = None
    merged: str | None = None
    not_merged: str | None = None

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
        results: results of the model, or their files, for the model card.
        license: the license of the weights, for the model card, which otherwise says nothing about it.
        command: the command that trained the model, for the model card.
        data: the data set whose test images to compare on, or the name of its config; by default the one the model was
            trained on. Without images, random pixels are compared.

    Raises:
        UserError: if there is no such model, it can't be exported like this, or the export's logits differ.
    """
    check_choice("format", format, ExportFormat)
    check_choice("normalise", normalise, Normalise)
    check_choice("target", target, Target)
    folder = Path(folder)
    loaded = replace(as_loaded(model), command=command)
    only_order = None if order is None else loaded.check(order)
    _check(loaded, only_order, format, per_layer, target)
    # Results that can't be read should be known before anything is written.
    for_card = [source if isinstance(source, Results) else Results.load(source) for source in results]
    exporting.check_new(folder)

    images, compared_on = _images_to_compare(data, loaded)
    try:
        if format != "timm":
            loaded.model.to(target)
            program = _Program(format, per_layer, normalise)
            written = _export_program(loaded, folder, only_order, program, for_card, license, images)
        elif only_order is not None and only_order.whole_layers is None:
            written = _export_wide(loaded, folder, only_order, for_card, license, images)
        else:
            written = _export_for_timm(loaded, folder, only_order, for_card, license, images)
        # Written like this, so that NaN is refused too.
        if not written.difference <= TOLERANCE:
            raise UserError(
                f"the export's logits differ from the original's by {written.difference:.2g}, so it was not kept"
            )
    # Also after Ctrl-C: a folder that is there must be one that was checked.
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return ExportedModel(folder, format, compared_on=compared_on, **written._asdict())


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

    def run(batch: Tensor, order: Order | None) -> Tensor:
        inputs = normalise(batch)
        if timm_refuses:
            return exported(inputs).logits
        # timm runs its own model without our wrapper, and so that is what is compared.
        logits: Tensor = exported.vit(inputs)
        return logits

    return _Written(_difference(model, run, [order], images), timm_refuses)


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

    return _Written(_difference(model, run, [order], images), merged=what_is_merged(order))


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
    merged = None
    not_merged = None
    if has_groups(order) and not program.per_layer:
        not_merged = why_not_wide(loaded.model, order)
        merged = None if not_merged else what_is_merged(order)
    difference = _difference_of_programs(loaded.model, folder, order, program, images)
    return _Written(difference, merged=merged, not_merged=not_merged)


def _difference_of_programs(model: OrderedViT, folder: Path, order: Order, program: _Program, images: Tensor) -> float:
    """How far the logits of the programs in ``folder`` are from the model's."""
    programs = Programs(folder)
    device = next(model.parameters()).device
    preprocess = Preprocess(*model.image_format).to(device)
    orders: list[Order | None] = [order]
    # Steps that read older states have no other sequence.
    if program.per_layer and not order.longest_lag:
        orders.extend(order.shuffled(seeded(0, number)) for number in range(SAMPLED))

    def run(batch: Tensor, order: Order | None) -> Tensor:
        return programs(batch if program.normalise == "inside" else preprocess(batch), order)

    return _difference(model, run, orders, images.to(device))


@torch.inference_mode()
def _difference(model: OrderedViT, run: Run, orders: Sequence[Order | None], images: Tensor) -> float:
    """How far the logits of ``run`` are from the model's in any of ``orders``; NaN if one of them is not a number.

    images: uint8 [images, channels, size, size]. All run as one batch, and the first by itself.
    """
    normalise = Preprocess(*model.image_format).to(images.device)
    largest = []
    for order in orders:
        # A program may have kept the size of the batch that it was exported with.
        for batch in (images, images[:1]):
            expected = model(normalise(batch), order).logits
            logits = run(batch, order).to(images.device)
            largest.append((logits - expected).abs().max())
    # Unlike Python's max, torch's is NaN where one of the numbers is.
    return float(torch.stack(largest).max())


def _images_to_compare(data: DataLike, loaded: LoadedModel) -> tuple[Tensor, str]:
    """Images to compare on, uint8 [images, channels, size, size], and what they are."""
    model = loaded.model
    try:
        images_of = as_data(data, loaded)
        # So few images don't repay the start of worker processes.
        images_of.workers = 0
        preprocess = images_of.prepare_for(*model.image_format)
        images_of.setup("test")
        images, _ = next(iter(images_of.loader("test", COMPARED)))
        resized = preprocess.resized(images).expand(-1, model.image_shape[0], -1, -1)
        return resized, f"{counted(len(resized), 'test image')} of {images_of.label}"
    except UserError as error:
        logger.info("the export is compared on random pixels, because there are no images (%s)", error)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COMPARED, *model.image_shape), dtype=torch.uint8, generator=generator)
    return pixels, f"{COMPARED} images of random pixels"
