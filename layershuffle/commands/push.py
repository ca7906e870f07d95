"""Uploads an exported folder to the Hugging Face hub, and prints where it is."""

import logging
from pathlib import Path

import layershuffle
from layershuffle.commands.interrupts import on_interrupt
from layershuffle.commands.parser import Parser

logger = logging.getLogger(__name__)


def push_command(args: list[str] | None = None) -> None:
    """Upload as ``args`` say, by default those of the process."""
    parser = Parser(
        prog="layershuffle push",
        description="Upload a folder of layershuffle export to the Hugging Face hub, to the account that is logged in.",
    )
    parser.add_argument("exported", type=Path, help="Folder that layershuffle export wrote.")
    parser.add_argument("name", help="Name of the model on the hub, USER/NAME.")
    parser.add_argument(
        "--public", type=bool, default=False, help="Make a new model public; by default only you see it."
    )
    parser.add_argument("--message", default="Upload with layershuffle", help="Commit message.")
    config = parser.parse_args(args)

    with on_interrupt("the upload is not complete, and the same command begins it again"):
        pushed = layershuffle.push(config.exported, config.name, public=config.public, message=config.message)
    audience = "only you" if pushed.is_private else "everybody"
    print(f"uploaded to {pushed.url}, which {audience} can see")
    if pushed.is_private and config.public:
        logger.info("the model was there already and is private; its settings on the hub can change that")
