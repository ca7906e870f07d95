"""Exports a model for others, and prints how they load it."""

import sys
from pathlib import Path
from typing import get_args

from jsonargparse import Namespace

import layershuffle
from layershuffle.choices import ExportFormat, Normalise, Quantize, Target
from layershuffle.commands.parser import Parser
from layershuffle.commands.study_options import check_names, parse_with_data
from layershuffle.errors import UserError
from layershuffle.options import add_one_order, add_positionals


def _parser() -> Parser:
    parser = Parser(
        prog="layershuffle export",
        usage="%(prog)s CHECKPOINT FOLDER [CONFIG ...] [options]",
        description="Write a folder with a model in one order, for timm or as a program for torch.export, ONNX or "
        "AOTInductor, and a model card. It is compared with the original on images of the data set before it is kept.",
    )
    add_positionals(parser, "checkpoint")
    parser.add_argument("exported", type=Path, help="Folder to write, a new one.")
    parser.add_argument("--config", action="config", help="A file with some of these options, such as a data config.")
    add_one_order(parser)
    parser.add_argument(
        "--format",
        choices=get_args(ExportFormat),
        default="timm",
        help="Format of the files: timm writes safetensors and a configuration that timm's local-dir: and hf-hub: "
        "loaders read, the others are programs; aoti is AOTInductor, compiled for the processor of this machine.",
    )
    parser.add_argument(
        "--per_layer", type=bool, default=False, help="Write a program for each layer, which run in any order."
    )
    parser.add_argument(
        "--normalise",
        choices=get_args(Normalise),
        default="inside",
        help="Where programs normalise images: inside, they take uint8 pixels; beside, they take what their caller has "
        "normalised.",
    )
    parser.add_argument("--target", choices=get_args(Target), default="cpu", help="Device that programs will run on.")
    parser.add_argument(
        "--quantize",
        choices=get_args(Quantize),
        help="Make an ONNX program smaller: int8 multiplies 8-bit integers, fp16 stores weights in half precision.",
    )
    parser.add_argument(
        "--calibrate",
        type=int | None,
        help="Number of training images on which the ranges of int8 are measured (default: the program measures them "
        "each time it runs).",
    )
    parser.add_argument(
        "--check_images",
        type=int | None,
        help="Number of random test images on which a quantized program is checked (default: 500).",
    )
    parser.add_argument(
        "--max_loss",
        type=float | None,
        help="How far the top-1 accuracy of a quantized program may fall, from 0 to 1 (default: 0.02).",
    )
    parser.add_argument(
        "--min_agreement",
        type=float | None,
        help="Smallest share of images to which a quantized program gives the original's class, from 0 to 1 (default: "
        "0.9).",
    )
    parser.add_argument("--results", type=Path, nargs="+", default=[], help="Results files, for the model card.")
    parser.add_argument("--license", type=str | None, help="License of the weights, for the model card.")
    parser.add_argument("--command", type=str | None, help="Command that trained the model, for the model card.")
    return parser


def export_command(args: list[str] | None = None) -> "layershuffle.ExportedModel":
    """Export as ``args`` say, by default those of the process."""
    args = sys.argv[1:] if args is None else args
    # The checkpoint and the folder come before the configs.
    check_names(args, positionals=2)
    parser = _parser()
    config = parse_with_data(
        parser,
        args,
        is_required=False,
        help="Data set whose test images to compare on (default: the one the model was trained on).",
    )
    exported = layershuffle.export(
        config.checkpoint,
        config.exported,
        order=config.order,
        format=config.format,
        per_layer=config.per_layer,
        normalise=config.normalise,
        target=config.target,
        quantize=_quantization(config),
        results=config.results,
        license=config.license,
        command=config.command,
        data=parser.instantiate_classes(config).data,
    )
    print_exported(exported)
    return exported


def _quantization(config: Namespace) -> "layershuffle.Quantization | None":
    """How to quantize; raises a UserError if an option says so of a program that is not to be quantized."""
    given = {}
    for name in ("calibrate", "check_images", "max_loss", "min_agreement"):
        if config[name] is not None:
            given[name] = config[name]
    if config.quantize is None:
        if given:
            raise UserError(f"--{next(iter(given))} is for quantized programs: add --quantize int8")
        return None
    return layershuffle.Quantization(config.quantize, **given)


def print_exported(exported: "layershuffle.ExportedModel") -> None:
    """Print how the export was checked, and how to load it."""
    # These take seconds to import, for which --help needn't wait.
    from layershuffle.checkpoints.export import LOAD
    from layershuffle.checkpoints.exported import WIDE_FILE

    quantized = exported.quantized
    before = ", before it is quantized" if quantized else ""
    print(
        f"checked: on {exported.compared_on} its logits differ from the original's by at most "
        f"{exported.difference:.2g}{before}"
    )
    if quantized:
        print(f"quantized: {quantized.how}")
        print(f"{quantized.gain} (one image at a time, {quantized.device})")
        print(f"checked: on {quantized.compared_on}")
        for agreement in quantized.agreements:
            print(f"  {agreement}")
    if exported.merged:
        print(f"merged: the layers of a group are written as one wide layer: {exported.merged}")
    if exported.not_merged:
        print(f"not merged, so that the layers of a group run one after the other: {exported.not_merged}")

    # The line with which it is loaded, which depends on who can run it.
    folder = exported.folder
    if exported.format != "timm":
        print(f"exported to {folder}: {folder}/README.md says how to run it")
    elif exported.merged:
        print(f"exported to {folder}: {folder}/README.md says how {WIDE_FILE} runs it")
    elif exported.timm_refuses:
        print(f"exported to {folder}: {LOAD}('{folder}')")
        print(f"timm can't run it, because {exported.timm_refuses}; with --format onnx or torch-export, others can")
    else:
        print(f"exported to {folder}: timm.create_model('local-dir:{folder}', pretrained=True)")
