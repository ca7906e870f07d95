"""Measures how fast one core reads images of 224 pixels: ``python -m benchmarks.input``.

docs/findings/performance.md has the figures.

Every contender reads the same images in random sequence, as batches of uint8 [batch, 3, 224, 224] and labels. First it
reads them from the kernel's memory, then "from disk", after the kernel was told to drop the files; caches of the disk
and its host can't be emptied. litdata takes part if it is installed (``pip install litdata``).
"""

import os
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from benchmarks.common import Times, arguments, ratio, report, seconds, take_turns
from benchmarks.readers import (
    SIZE,
    Reader,
    decoded_by_pillow,
    jpegs_in_a_tar,
    litdata_chunks,
    memory_map,
    random_crops,
    tensor_file,
)
from layershuffle.data import ImageFolders, PackedFolders
from layershuffle.data.packing import Packing, pack

BATCH = 128
BATCHES = 4
"""How many batches a contender reads in a turn."""
GOAL = 1000
"""The images per second that one core should read from packed records."""
OURS = "packed records (ours)"
PICTURE_SIZES = [(500, 375), (500, 333), (375, 500), (640, 480)]
"""Widths and heights that are frequent in ImageNet."""


@dataclass(frozen=True)
class Contender:
    """A way to read images.

    Attributes:
        read: reads a batch.
        path: the file or the folder that it reads from.
        same_pixels: whether its images are compared with those of the class folders. Random crops can't be the same,
            and neither can another sequence.
    """

    read: Reader
    path: Path
    same_pixels: bool = True


def make_folders(root: Path, count: int) -> None:
    """Make JPEGs of noise with about ImageNet's pixels and bytes, in ten classes, and 10 more for validation."""
    rng = np.random.default_rng(0)
    for index in track(range(count + 10), "making JPEGs"):
        split = "train" if index < count else "val"
        path = root / split / f"n{index % 10}" / f"{index:06d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)

        # Pure noise would make far larger JPEGs than photographs are: it is coarse noise, with a little fine grain.
        width, height = PICTURE_SIZES[index % len(PICTURE_SIZES)]
        coarse = Image.fromarray(rng.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.normal(0, 10, smooth.shape)
        pixels = (smooth + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)


def files_of(path: Path) -> list[Path]:
    """The file at ``path``, or all files below this folder."""
    if path.is_file():
        return [path]
    return [file for file in path.rglob("*") if file.is_file()]


def forget(path: Path) -> None:
    """Make the kernel drop the files at ``path`` from its memory."""
    for file in files_of(path):
        with file.open("rb") as opened:
            # Pages that are not on the disk yet would not be dropped.
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pack_folders(sources: Path, folder: Path, whole: bool) -> None:
    """Pack class folders into ``folder``, if that isn't done."""
    packing = Packing(ImageFolders(str(sources)), folder, SIZE, whole)
    if packing.finished:
        return
    packing.folder.mkdir()
    for _ in pack(packing, workers=0):
        pass


def make_contenders(folder: Path, records: Any, sources: Path) -> dict[str, Contender]:
    """The contenders by name, with the files that they read; the first one is what the others are compared with.

    Args:
        folder: for the files of the contenders.
        records: the packed squares.
        sources: the class folders.
    """
    decoded: Any = ImageFolders(str(sources), image_size=SIZE).load(train=True)
    wholes: Any = PackedFolders(str(folder / "whole"), image_size=SIZE).load(train=True)
    tensors = folder / "images.safetensors"
    tar = folder / "images.tar"
    contenders = {
        "class folders, decoded by Pillow": Contender(decoded_by_pillow(decoded), sources / "train"),
        OURS: Contender(records.__getitems__, records.path),
        "the same, mapped into memory": Contender(memory_map(records), records.path),
        "whole pictures, of which squares are read": Contender(wholes.__getitems__, wholes.path),
        "random crops of packed squares": Contender(random_crops(records), records.path, same_pixels=False),
        "random crops of whole pictures": Contender(random_crops(wholes), wholes.path, same_pixels=False),
        "safetensors": Contender(tensor_file(tensors, records), tensors),
    }
    for name, reader in litdata_chunks(folder / "litdata", records).items():
        contenders[name] = Contender(reader, folder / "litdata", same_pixels="own sequence" not in name)
    contenders["JPEGs of 224 pixels in a tar"] = Contender(jpegs_in_a_tar(tar, records), tar)
    return contenders


def benchmark(folder: Path, count: int, rounds: int, output: Path | None) -> None:
    """Make the files that are missing in ``folder``, time the contenders, and report."""
    sources = folder / "folders"
    if not sources.exists():
        make_folders(sources, count)
    pack_folders(sources, folder / "packed", whole=False)
    pack_folders(sources, folder / "whole", whole=True)
    # Nothing is held out, so that the images to train on are all of the records.
    data = PackedFolders(str(folder / "packed"), batch_size=BATCH, workers=1, val_fraction=0)
    data.setup()
    records: Any = data.sets["train"]
    contenders = make_contenders(folder, records, sources)
    baseline = next(iter(contenders))

    # All read the same images, in the same random sequence.
    rng = torch.Generator().manual_seed(0)
    batches = [torch.randint(len(records), (BATCH,), generator=rng).tolist() for _ in range(BATCHES)]
    pixels_of = compare_pixels(contenders, batches[0])

    cpu = torch.device("cpu")
    turns = {name: partial(read_all, contender.read, batches) for name, contender in contenders.items()}
    warm = take_turns(turns, rounds, cpu)
    cold: Times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            forget(contender.path)
            cold[name].append(seconds(turns[name], cpu))

    rows = []
    for name, contender in contenders.items():
        rows.append(
            {
                "contender": name,
                "images/s per core": BATCH * BATCHES / statistics.median(warm[name]),
                "ratio": ratio(warm, name, baseline),
                "from disk": BATCH * BATCHES / statistics.median(cold[name]),
                "ratio from disk": ratio(cold, name, baseline),
                "bytes per image": sum(file.stat().st_size for file in files_of(contender.path)) // len(records),
                "same pixels": pixels_of[name],
            }
        )
    setting = {"images": len(records), "size": SIZE, "batch": BATCH, "rounds": rounds}
    setting["images/s of ours through a DataLoader's worker"] = round(loader_speed(data, rounds))
    report("input", rows, cpu, setting, output)
    speed = BATCH * BATCHES / statistics.median(warm[OURS])
    verdict = "met" if speed >= GOAL else "missed"
    print(f"goal: {GOAL} images/s per core from the packed set; {verdict}: {speed:.0f}")


def compare_pixels(contenders: Mapping[str, Contender], batch: list[int]) -> dict[str, str | None]:
    """Whether each contender reads the images and labels of the first one: "yes", "no", or None if it can't.

    Each of them reads, also those that are not compared, so that what they prepare once isn't timed.
    """
    first = next(iter(contenders.values()))
    expected = first.read(batch)
    same: dict[str, str | None] = {}
    for name, contender in contenders.items():
        pixels, labels = contender.read(batch)
        if not contender.same_pixels:
            same[name] = None
        elif torch.equal(pixels, expected[0]) and torch.equal(labels, expected[1]):
            same[name] = "yes"
        else:
            same[name] = "no"
    return same


def read_all(read: Reader, batches: list[list[int]]) -> None:
    """Read batches one after the other."""
    for batch in batches:
        read(batch)


def loader_speed(data: PackedFolders, rounds: int) -> float:
    """Images per second that arrive from the worker process of a DataLoader; the first epoch is a warm-up."""
    loader = data.train_dataloader()

    def epoch() -> None:
        for _ in loader:
            pass

    times = [seconds(epoch, torch.device("cpu")) for _ in range(rounds + 1)]
    return len(loader) * BATCH / statistics.median(times[1:])


def main() -> None:
    """Run the benchmark."""
    parser = arguments("input", "Measure how fast one core reads images, from class folders and packed.")
    parser.add_argument(
        "--folder", type=Path, default=None, help="a folder for the files that it makes (default: a temporary one)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    is_small = args.size == "small"
    count = 2000 if is_small else 20000
    rounds = args.rounds or (5 if is_small else 10)
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        benchmark(args.folder, count, rounds, args.output)
        return
    # The system's folder for temporary files may be in memory, where there is nothing to read from a disk.
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        benchmark(Path(folder), count, rounds, args.output)


if __name__ == "__main__":
    main()
