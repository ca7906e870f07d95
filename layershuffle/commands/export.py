"""Exports a checkpoint for others, and compares what it wrote with the original."""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch
from jsonargparse import Namespace
from torch import Tensor

from layershuffle.checkpoints.export import LOAD, check_new, export, why_not_timm
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load
from layershuffle.checkpoints.program_export import export_programs
from layershuffle.checkpoints.programs import Format, Programs
from layershuffle.commands.parser import Parser
from layershuffle.commands.studying import parse
from layershuffle.data import ImageData, Preprocess
from layershuffle.errors import UserError
from layershuffle.models import OrderedViT
from layershuffle.orders.order import Order, seeded
from layershuffle.results import Results

TOLERANCE = 1e-4
"""The largest difference between the logits of a model and of its export, in float32."""
COMPARED = 8
"""How many images the two are compared on."""

Run = Callable[[Tensor, Order | None], Tensor]
"""What was exported: uint8 images and an order to logits."""


def export_command(args: list[str] | None = None) -> None:
    """Export as ``args`` say, by default those of the process."""
    parser = Parser(
        prog="layershuffle export",
        usage="%(prog)s CHECKPOINT FOLDER [CONFIG ...] [options]",
        description="Write a folder with a model in one order, for timm or as a program for torch.export, ONNX or "
        "AOTInductor, and a model card. It is compared with the original on images of the data set before it is kept.",
    )
    parser.add_argument("checkpoint", help="a checkpoint of layershuffle train, a merged one, or an exported folder")
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--config", action="config", help="a file with some of these options, such as a data config")
    parser.add_argument("--order", type=str | None, help="the order to run, such as 'first(6)' (default: its own)")
    parser.add_argument(
        "--format",
        choices=["timm", *get_args(Format)],
        default="timm",
        help="timm: safetensors and a configuration that timm's local-dir: and hf-hub: loaders read; aoti is "
        "AOTInductor, compiled for the processor of this machine",
    )
    parser.add_argument("--split", action="store_true", help="programs: one for each layer, which run in any order")
    parser.add_argument(
        "--normalise",
        choices=["inside", "beside"],
        default="inside",
        help="programs: inside, they take uint8 pixels; beside, they take what the caller has normalised",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="programs: where they will run")
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="results files, for the model card")
    parser.add_argument(
        "--license", type=str | None, help="of the weights, for the model card (default: none is named)"
    )
    parser.add_subclass_arguments(
        ImageData, "data", required=False, help="whose test images to compare on (default: the checkpoint's)"
    )
    args = sys.argv[1:] if args is None else args
    config = parse(parser, args, required=False)
    subject, folder = load(config.checkpoint), config.folder
    model = subject.model.eval()
    if "method" not in subject.record:
        raise UserError(f"{config.checkpoint} is not a checkpoint of layershuffle train")
    order = model.check(config.order) if config.order else None
    programs = config.format != "timm"
    if config.split and (order is not None or not programs):
        raise UserError("--split is for programs that run any order: give another --format than timm, and no --order")
    if programs and model.choice and order is None and not config.split:
        raise UserError("each image chooses its order, which a program can't do: name one with --order")
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU to export for here: leave out --device")
    results = [Results.load(path) for path in config.results]
    check_new(folder)
    images, source = _images(parser, config, model)
    try:
        if programs:
            difference = _export_programs(config, subject, order, results, images)
        else:
            export(subject, folder, order=order, results=results, license=config.license)
            exported = load(folder).model.eval()
            why = why_not_timm(exported)
            normalise = Preprocess(*model.image_format)
            run = (lambda images: exported(images).logits) if why else exported.vit
            difference = _difference(model, lambda images, _: run(normalise(images)), [order], images)
        if not difference <= TOLERANCE:  # as NaN is not
            raise UserError(f"the export's logits differ from the original's by {difference:.2g}, so it was not kept")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    print(f"checked: on {source} its logits differ from the original's by at most {difference:.2g}")
    if programs:
        print(f"exported to {folder}: layershuffle.checkpoints.programs.Programs('{folder}')")
    elif why:
        print(f"exported to {folder}: {LOAD}('{folder}')")
        print(f"note: timm can't run this model, because {why}; with --format onnx or torch-export, others can")
    else:
        print(f"exported to {folder}: timm.create_model('local-dir:{folder}', pretrained=True)")


def _export_programs(
    config: Namespace,
    subject: LoadedModel,
    order: Order | None,
    results: Sequence[Results],
    images: Tensor,
) -> float:
    """Export as programs; returns how far their logits are from the model's."""
    model = subject.model.to(config.device)
    own = model.order if order is None else order
    inside = config.normalise == "inside"
    export_programs(
        subject,
        config.folder,
        config.format,
        order=None if config.split else own,
        normalises=inside,
        results=results,
        license=config.license,
    )
    run = Programs(config.folder)
    normalise = Preprocess(*model.image_format).to(config.device)
    orders = [own, *(own.shuffled(seeded(0, draw)) for draw in range(3))] if config.split else [own]
    images = images.to(config.device)
    return _difference(model, lambda batch, order: run(batch if inside else normalise(batch), order), orders, images)


@torch.inference_mode()
def _difference(model: OrderedViT, run: Run, orders: Sequence[Order | None], images: Tensor) -> float:
    """How far the logits of ``run`` are from the model's in any of ``orders``; NaN if one of them is not a number.

    images: uint8 [images, channels, size, size]. All run as one batch, and the first by itself.
    """
    normalise = Preprocess(*model.image_format).to(images.device)
    found = [
        (run(batch, order).to(images.device) - model(normalise(batch), order).logits).abs().max()
        for order in orders
        for batch in (images, images[:1])
    ]
    return float(torch.stack(found).max())


def _images(parser: Parser, config: Namespace, model: OrderedViT) -> tuple[Tensor, str]:
    """Images to compare on, uint8 [images, channels, size, size], and what they are."""
    try:
        data = parser.instantiate_classes(config).data
        if not data:
            raise UserError("the checkpoint doesn't say which images it was trained on")
        data.workers = 0
        preprocess = data.prepare_for(*model.image_format)
        data.setup("test")
        images = preprocess.resized(next(iter(data.loader("test", COMPARED)))[0])
        return images.expand(-1, model.image_shape[0], -1, -1), f"{len(images)} test images of {data.label}"
    except UserError as error:
        print(f"note: it is compared on random pixels, because there are no images ({error})", file=sys.stderr)
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(256, (COMPARED, *model.image_shape), dtype=torch.uint8, generator=generator)
        return images, f"{COMPARED} images of random pixels"
