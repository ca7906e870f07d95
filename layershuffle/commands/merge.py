"""Merges models layer by layer."""

import io
from pathlib import Path

import torch

from layershuffle.checkpoints.merging import merge
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.commands.parser import Parser
from layershuffle.errors import UserError
from layershuffle.files import write_whole


def merge_parser() -> Parser:
    """The options of ``layershuffle merge``."""
    parser = Parser(
        prog="layershuffle merge",
        description="Take each layer at random from one of several models of the same backbone.",
    )
    parser.add_argument(
        "checkpoints", nargs="+", help="two or more checkpoints of layershuffle train, of one backbone and method"
    )
    parser.add_argument("--seed", type=int, default=0, help="decides which layer comes from which model")
    parser.add_argument("--output", type=Path, default=Path("merged.ckpt"), help="the merged checkpoint, a new file")
    return parser


def merge_command(args: list[str] | None = None) -> None:
    """Merge as ``args`` say, by default those of the process."""
    config = merge_parser().parse_args(args)
    if config.output.exists():
        raise UserError(f"{config.output} is there already: give another --output, or remove it")
    merged = merge(config.checkpoints, config.seed)
    buffer = io.BytesIO()
    torch.save(merged, buffer)
    write_whole(config.output, buffer.getbuffer())
    layers = " ".join(str(source) for source in merged[METADATA_KEY]["merged"]["layers"])
    print(f"merged checkpoint: {config.output} (its layers come from the checkpoints {layers}, counted from 0)")
