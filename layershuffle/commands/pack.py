"""Packs class folders such as ImageNet's and sets of Hugging Face, and prints how to train on them."""

from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

import layershuffle
from layershuffle.commands.interrupts import on_interrupt
from layershuffle.commands.parser import Parser
from layershuffle.options import add_options


def pack_command(args: list[str] | None = None) -> None:
    """Pack as ``args`` say, by default those of the process."""
    parser = Parser(
        prog="layershuffle pack",
        description="Resize and crop the images of a data set once, into files that are read without decoding. "
        "If it is stopped or killed, the same command continues and ends with the same bytes. A finished folder is "
        "checked.",
    )
    parser.add_argument(
        "source",
        type=Path,
        help="Folder with train/CLASS/*, and val/CLASS/* or test/CLASS/* or both, or one with a set of Hugging Face.",
    )
    parser.add_argument("packed", type=Path, help="Folder to pack into: a new one, or one that this command has begun.")
    parser.add_argument(
        "--size", type=PositiveInt, default=224, help="Height and width of the images that the model takes, in pixels."
    )
    parser.add_argument(
        "--whole",
        type=bool,
        default=False,
        help="Pack whole pictures, whose shorter side has this size, so that random crops can show all of them and not "
        "only their centres.",
    )
    parser.add_argument(
        "--test_fraction",
        type=float | None,
        help="Share of each class that becomes the test set, if there is no folder val or test.",
    )
    parser.add_argument(
        "--channels",
        type=Literal[1, 3, 4],
        default=3,
        help="Channels that the model takes: 1 packs grey, 3 RGB over white, and 4 RGBA.",
    )
    parser.add_argument(
        "--image_column",
        type=str | None,
        help="Column with the images, if several of a set of Hugging Face have the type Image.",
    )
    parser.add_argument(
        "--label_column",
        type=str | None,
        help="Column with the labels, if several of a set of Hugging Face have the type ClassLabel.",
    )
    add_options(parser, "workers")
    config = parser.parse_args(args)
    # It may take hours, so that whoever interrupts it should know that nothing is lost.
    with on_interrupt("the same command continues"):
        packed = layershuffle.pack(
            config.source,
            config.packed,
            size=config.size,
            whole=config.whole,
            workers=config.workers,
            test_fraction=config.test_fraction,
            channels=config.channels,
            image_column=config.image_column,
            label_column=config.label_column,
        )
    verb = "checked" if packed.was_finished else "packed"
    print(
        f"{verb}: {packed.folder}; train on it with --data PackedFolders --data.root {packed.folder}, or, if it is "
        "ImageNet, with the config imagenet_packed in place of --data"
    )
