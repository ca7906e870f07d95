"""Writes the features of pictures, which is what the model's classifier reads, to a file."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import layershuffle
from layershuffle.command_lines import option_values
from layershuffle.commands.parser import Parser
from layershuffle.commands.picture_options import check_picture_options
from layershuffle.commands.study_options import check_names, parse_with_data
from layershuffle.errors import UserError
from layershuffle.files import check_writable
from layershuffle.options import POSITIONALS, add_one_order, add_options, add_positionals

logger = logging.getLogger(__name__)


def _parser() -> Parser:
    parser = Parser(
        prog="layershuffle embed",
        usage="%(prog)s CHECKPOINT [PICTURES ...] --output FILE.npz [options]",
        description="Write the features of pictures, or of a data set's images, to a file that numpy.load reads: what "
        "the model's classifier reads, in one order or in many. The model needs no classifier.",
    )
    add_positionals(parser, "checkpoint")
    pictures = replace(POSITIONALS["pictures"], several=False).arguments()
    parser.add_argument("pictures", nargs="*", **pictures)
    add_one_order(parser)
    add_options(parser, "random_orders", "split", "seed", "output", "pretrained", "img_size")
    add_options(parser, "accelerator", "precision", batch_size=64)
    return parser


def embed_command(args: list[str] | None = None) -> "layershuffle.Embeddings":
    """Embed as ``args`` say, by default those of the process."""
    args = sys.argv[1:] if args is None else args
    check_names(args, positionals=len(args))
    parser = _parser()
    config = parse_with_data(
        parser,
        args,
        is_required=False,
        help="Data set whose images to take in place of pictures (default: the one the model was trained on).",
    )
    check_picture_options(config)
    if config.pictures and option_values(parser.expanded(args), "--data"):
        raise UserError("pictures and --data are given: leave one of the two out")
    if not config.pictures and not config.data:
        raise UserError(f"{config.checkpoint} doesn't say which data it was trained on: name pictures, or a --data set")
    if not config.output or config.output.suffix != ".npz":
        raise UserError(f"--output {config.output or ''} is needed: the name of a file that ends in .npz")
    check_writable(config.output)

    import torch

    # Random weights are those of the seed. The model may have no classifier, so it is loaded without one.
    torch.manual_seed(config.seed)
    model = layershuffle.load(config.checkpoint, config.pretrained, 0, config.img_size)
    # The parser knows the data set of the model's training, which isn't made if pictures are named.
    data = None
    if not config.pictures:
        data = parser.instantiate_classes(config).data
    embeddings = layershuffle.embed(
        model,
        config.pictures or None,
        data,
        order=config.order,
        random_orders=config.random_orders,
        split=config.split,
        seed=config.seed,
        accelerator=config.accelerator,
        precision=config.precision,
        batch_size=config.batch_size,
    )
    # Pictures that can't be read are told, and the others are embedded all the same.
    for picture in embeddings.unreadable:
        logger.warning("%s", picture)
    _save(embeddings, config.output)
    print(f"{embeddings}: {config.output}")
    return embeddings


def _save(embeddings: "layershuffle.Embeddings", output: Path) -> None:
    """Write the file, and if the disk is full, another one in the folder for temporary files."""
    from layershuffle.commands.results_files import save_elsewhere

    try:
        embeddings.save(output)
    except UserError as error:
        path = save_elsewhere(embeddings, output)
        if path is None:
            raise
        raise UserError(f"{error}; the features are in {path}") from error
