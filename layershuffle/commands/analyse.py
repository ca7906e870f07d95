"""What a layer does at each position."""

from typing import get_args

import layershuffle
from layershuffle.choices import Subject
from layershuffle.commands.parser import Parser
from layershuffle.commands.study_options import parse_study, study_parser


def analyse_parser() -> Parser:
    """The options of ``layershuffle analyse``, but for ``--data``."""
    parser = study_parser(
        "analyse",
        "Run random images, each in a random order of its own, and look at the layers: their outputs (representations: "
        "UMAP of one layer's, by the position it held) or how much each changes what the model classifies by, the "
        "class token or else the mean of the patch tokens (contributions).",
    )
    parser.add_argument(
        "--study", choices=get_args(Subject), default="representations", help="What to look at in the layers."
    )
    parser.add_argument("--layer", type=int | None, help="Layer of the representations (default: the middle one).")
    parser.add_argument("--images", type=int, default=1000, help="How many images to run; the seed decides which ones.")
    return parser


def analyse_command(args: list[str] | None = None) -> "layershuffle.Results":
    """Analyse as ``args`` say, by default those of the process; saves what was found and its picture.

    One model's half of figure 4 of arXiv 2407.04513.
    """
    command = parse_study(analyse_parser(), args, "analysis", needs_classifier=False)
    config = command.config
    results = layershuffle.analyse(
        command.model,
        command.data,
        split=config.split,
        study=config.study,
        layer=config.layer,
        images=config.images,
        **command.options,
    )
    command.leave(results)
    return results
