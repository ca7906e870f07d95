"""Exports a model for others, and compares what was written with the original."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from layershuffle.api.data import DataLike, as_data
from layershuffle.api.study import ModelLike, as_loaded
from layershuffle.checkpoints import export as exporting
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load
from layershuffle.checkpoints.program_export import export_programs
from layershuffle.checkpoints.programs import Programs
from layershuffle.choices import ExportFormat, Normalise, Target
from layershuffle.data import Preprocess
from layershuffle.errors import UserError
from layershuffle.models import OrderedViT
from layershuffle.orders.order import Order, OrderLike, seeded
from layershuffle.results import Results

logger = logging.getLogger(__name__)

Run = Callable[[Tensor, Order | None], Tensor]
"""What was exported: a function of uint8 images and an order that returns logits."""

TOLERANCE = 1e-4
"""The largest difference between the logits of a model and of its export, in float32."""
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
    """

    folder: Path
    format: ExportFormat
    difference: float
    compared_on: str
    timm_refuses: str | None = None


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
    data: DataLike = None,
) -> ExportedModel:
    """Write a folder with a model, and a model card.

    What was written is compared with the original on images of the data set, and removed if it differs.

    Args:
        model: a model that ``layershuffle train`` or ``layershuffle merge`` made, or what ``layershuffle.load`` takes.
        folder: a new folder.
        order: the order to run, such as "first(6)"; by default the model's own.
        format: "timm" writes safetensors and a configuration that timm's ``local-dir:`` and ``hf-hub:`` loaders read.
            The other formats are programs that need neither timm nor this package; "aoti" is compiled for the
            processor of this machine.
        per_layer: whether programs are written for single layers, which run in any order.
        normalise: whether programs take uint8 pixels ("inside") or what their caller has normalised ("beside").
        target: the device that programs will run on.
        results: results of the model, or their files, for the model card.
        license: the license of the weights, for the model card, which otherwise says nothing about it.
        data: the data set whose test images to compare on, or the name of its config; by default the one the model was
            trained on. Without images, random pixels are compared.

    Raises:
        UserError: if there is no such model, it can't be exported like this, or the export's logits differ.
    """
    folder = Path(folder)
    loaded = as_loaded(model)
    is_program = format != "timm"
    if loaded.info.method is None:
        raise UserError(f"{loaded.info.source} is not a checkpoint of layershuffle train")
    only_order = None if order is None else loaded.check(order)
    if per_layer and (only_order is not None or not is_program):
        raise UserError("programs of single layers run any order: name another format than timm, and no order")
    if is_program and loaded.model.choice and only_order is None and not per_layer:
        raise UserError("each image chooses its order, which a program can't do: name one order")
    if target == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU to export for here: export for the CPU")
    for_card = [source if isinstance(source, Results) else Results.load(source) for source in results]
    exporting.check_new(folder)

    images, compared_on = _images_to_compare(data, loaded)
    timm_refuses = None
    try:
        if format == "timm":
            difference, timm_refuses = _export_for_timm(loaded, folder, only_order, for_card, license, images)
        else:
            loaded.model.to(target)
            run_order = loaded.order if only_order is None else only_order
            export_programs(
                loaded,
                folder,
                format,
                order=None if per_layer else run_order,
                normalises=normalise == "inside",
                results=for_card,
                license=license,
            )
            difference = _difference_of_programs(loaded.model, folder, run_order, per_layer, normalise, images)
        # Written like this, so that NaN is refused too.
        if not difference <= TOLERANCE:
            raise UserError(f"the export's logits differ from the original's by {difference:.2g}, so it was not kept")
    # Also after Ctrl-C: a folder that is there must be one that was checked.
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return ExportedModel(folder, format, difference, compared_on, timm_refuses)


def _export_for_timm(
    loaded: LoadedModel,
    folder: Path,
    order: Order | None,
    results: Sequence[Results],
    license: str | None,
    images: Tensor,
) -> tuple[float, str | None]:
    """Write timm's files; returns how far their logits are from the model's, and why timm can't run the model."""
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

    return _difference(model, run, [order], images), timm_refuses


def _difference_of_programs(
    model: OrderedViT, folder: Path, order: Order, per_layer: bool, normalise: str, images: Tensor
) -> float:
    """How far the logits of the programs in ``folder`` are from the model's."""
    programs = Programs(folder)
    device = next(model.parameters()).device
    preprocess = Preprocess(*model.image_format).to(device)
    orders: list[Order | None] = [order]
    if per_layer:
        orders.extend(order.shuffled(seeded(0, number)) for number in range(SAMPLED))

    def run(batch: Tensor, order: Order | None) -> Tensor:
        return programs(batch if normalise == "inside" else preprocess(batch), order)

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
        return resized, f"{len(resized)} test images of {images_of.label}"
    except UserError as error:
        logger.info("the export is compared on random pixels, because there are no images (%s)", error)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COMPARED, *model.image_shape), dtype=torch.uint8, generator=generator)
    return pixels, f"{COMPARED} images of random pixels"
