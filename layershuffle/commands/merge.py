"""Merges models layer by layer, and prints which layer comes from which."""

from pathlib import Path

import layershuffle
from layershuffle.commands.parser import Parser
from layershuffle.options import add_options


def merge_parser() -> Parser:
    """The options of ``layershuffle merge``."""
    parser = Parser(
        prog="layershuffle merge",
        description="Take each layer at random from one of several models of the same backbone.",
    )
    parser.add_argument(
        "checkpoints", nargs="+", help="Two or more checkpoints of layershuffle train, of one backbone and method."
    )
    add_options(parser, "seed", output=Path("merged.ckpt"))
    return parser


def merge_command(args: list[str] | None = None) -> None:
    """Merge as ``args`` say, by default those of the process."""
    config = merge_parser().parse_args(args)
    merged = layershuffle.merge(config.checkpoints, config.output, seed=config.seed)
    layers = " ".join(map(str, merged.sources))
    print(f"merged checkpoint: {merged.path} (its layers come from the checkpoints {layers}, counted from 0)")
