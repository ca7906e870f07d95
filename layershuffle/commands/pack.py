"""Packs class folders such as ImageNet's: resized and cropped once, so that training reads without decoding."""

import os
import shutil
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from layershuffle.commands.parser import Parser
from layershuffle.data.folders import describe_left_out
from layershuffle.data.packing import Packing, pack
from layershuffle.errors import UserError


def pack_command(args: list[str] | None = None) -> None:
    """Pack as ``args`` say, by default those of the process."""
    parser = Parser(
        prog="layershuffle pack",
        description="Resize and crop the images of class folders once, into files that are read without decoding. "
        "If it is stopped or killed, the same command continues and ends with the same bytes. A finished folder is "
        "checked.",
    )
    parser.add_argument(
        "source", type=Path, help="the folder with train/CLASS/*, and val/CLASS/* or test/CLASS/* or both"
    )
    parser.add_argument("folder", type=Path, help="where to pack it: a new folder, or one that this command has begun")
    parser.add_argument("--size", type=int, default=224, help="height and width that the model takes, in pixels")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="pack whole pictures, whose shorter side is --size, for random crops of all of them (default: the centre)",
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--workers", type=int, default=cores, help="processes that pack (default: one per core)")
    config = parser.parse_args(args)
    folder, size = config.folder, config.size
    if size < 1 or config.workers < 0:
        raise UserError("--size is in pixels, at least 1, and --workers is at least 0")
    work = Packing(config.source, folder, size, config.whole, config.workers)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder to pack into")
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)
    counts = {split: len(images) for split, images in work.images.items()}
    total, missing, free = sum(work.bytes.values()), work.missing(), shutil.disk_usage(folder).free
    for line in describe_left_out(work.left_out):
        console.print(line, markup=False)
    kind = f"whole pictures of {size} pixels and more" if config.whole else f"images of {size} x {size} pixels"
    console.print(
        f"{', '.join(f'{count:,} {split}' for split, count in counts.items())} {kind} take {total / 1e9:,.3g} GB; "
        f"{missing / 1e9:,.3g} GB are still to be written, {free / 1e9:,.3g} GB are free"
    )
    if missing > free and not work.finished:
        raise UserError(
            f"{folder} has {free / 1e9:,.3g} GB free and {missing / 1e9:,.3g} GB are needed: free the rest or pack "
            "into a folder on another disk"
        )
    # auto_refresh would start a thread, which must not run while the workers are forked.
    with Progress(console=Console(stderr=True), auto_refresh=False) as bar:
        steps = ["checking"] if work.finished else ["packing", "checking"]
        tasks = {step: bar.add_task(step, total=sum(counts.values())) for step in steps}
        for step, images in pack(work, config.workers):
            bar.update(tasks[step], advance=images, refresh=True)
    console.print(
        f"{'checked' if work.finished else 'packed'}: {folder}; train on it with --data PackedFolders --data.root "
        f"{folder}, or, if it is ImageNet, with the config imagenet_packed in place of --data"
    )
