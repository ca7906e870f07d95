"""Measures how fast one core reads images of 224 pixels: ``python -m benchmarks.input``, see docs/input.md.

Every contender reads the same images in random sequence, as batches of uint8 [batch, 3, 224, 224] and labels. First it
reads them from the kernel's memory, then "from disk", after the kernel was told to drop the files; caches of the disk
and its host can't be emptied. litdata takes part if it is installed (``pip install litdata``).
"""

import io
import itertools
import os
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms.v2.functional import pil_to_tensor

from benchmarks.common import Times, arguments, ratio, report, seconds, take_turns
from layershuffle.data import ImageFolders, PackedFolders
from layershuffle.data.augmentation import Augmentation, Augmented
from layershuffle.data.packed import PackedImages
from layershuffle.data.packing import Packing, pack

SIZE, BATCH = 224, 128
BATCHES = 4  # per turn
GOAL = 1000  # images/s per core

Batch = tuple[Tensor, Tensor]
Reader = Callable[[list[int]], Batch]
"""Reads the batch of the images with these indices."""


def make_folders(root: Path, count: int) -> None:
    """Make JPEGs of noise with about ImageNet's pixels and bytes, in ten classes, and 10 more for validation."""
    rng = np.random.default_rng(0)
    for index in track(range(count + 10), "making JPEGs"):
        path = root / ("train" if index < count else "val") / f"n{index % 10}" / f"{index:06d}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        width, height = [(500, 375), (500, 333), (375, 500), (640, 480)][index % 4]
        coarse = Image.fromarray(rng.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.normal(0, 10, smooth.shape)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)


def random_crops(records: PackedImages) -> Reader:
    """Reads a random part of each packed picture and makes an image of SIZE pixels of it, as a recipe does."""
    crops = Augmented(records, Augmentation(scale=(0.08, 1.0)), SIZE, seed=0)
    return lambda indices: tuple(crops.__getitems__([(0, index) for index in indices]))  # type: ignore[return-value]


def memory_map(records: PackedImages) -> Reader:
    """Maps the packed records into memory, again for each batch, because the kernel can't drop mapped pages."""

    def read(indices: list[int]) -> Batch:
        mapped = np.memmap(records.path, np.uint8, "r", shape=(len(records), 3, SIZE, SIZE))
        return torch.from_numpy(mapped[indices]), records.labels[indices]

    return read


def tensor_file(path: Path, records: PackedImages) -> Reader:
    """Reads slices of one safetensors file."""
    if not path.exists():
        images, labels = records.__getitems__(list(range(len(records))))
        save_file({"images": images, "labels": labels}, path)

    def read(indices: list[int]) -> Batch:
        with safe_open(path, "pt") as file:
            images = file.get_slice("images")
            return torch.cat([images[n : n + 1] for n in indices]), records.labels[indices]

    return read


def jpegs_in_a_tar(path: Path, records: PackedImages) -> Reader:
    """Reads the packed images as JPEGs of quality 95 in a tar, like webdataset. Their pixels are not quite the same."""
    if not path.exists():
        with tarfile.open(path, "w") as tar:
            for n in range(len(records)):
                content = io.BytesIO()
                Image.fromarray(records[n][0].permute(1, 2, 0).numpy()).save(content, "JPEG", quality=95)
                entry = tarfile.TarInfo(f"{n:06d}.jpg")
                entry.size = content.tell()
                tar.addfile(entry, io.BytesIO(content.getvalue()))
    with tarfile.open(path) as tar:
        places = [(entry.offset_data, entry.size) for entry in tar]

    def read(indices: list[int]) -> Batch:
        images = []
        with path.open("rb", buffering=0) as file:
            for n in indices:
                offset, size = places[n]
                images.append(pil_to_tensor(Image.open(io.BytesIO(os.pread(file.fileno(), size, offset)))))
        return torch.stack(images), records.labels[indices]

    return read


class Numbered:
    """Gives litdata's writer, which runs in another process, the packed images one by one."""

    def __init__(self, records: PackedImages) -> None:
        self.records = records

    def __call__(self, n: int) -> dict[str, Any]:
        """Image ``n`` and its label, as litdata stores them."""
        image, label = self.records[n]
        return {"image": image, "label": int(label)}


def litdata_chunks(folder: Path, records: PackedImages) -> tuple[Reader, Reader] | tuple[None, None]:
    """Reads litdata's chunks of 64 MB by index, and in litdata's random sequence; None if it isn't installed."""
    try:
        import litdata
    except ImportError:
        return None, None
    if not folder.exists():
        everything = list(range(len(records)))
        litdata.optimize(Numbered(records), everything, output_dir=str(folder), num_workers=1, chunk_bytes="64MB")
    chunks = litdata.StreamingDataset(str(folder))
    shuffled = itertools.chain.from_iterable(
        litdata.StreamingDataset(str(folder), shuffle=True, seed=epoch) for epoch in itertools.count()
    )

    def stacked(several: list[dict[str, Any]]) -> Batch:
        return torch.stack([one["image"] for one in several]), torch.tensor([one["label"] for one in several])

    return lambda indices: stacked([chunks[n] for n in indices]), lambda indices: stacked(
        list(itertools.islice(shuffled, len(indices)))
    )


def forget(path: Path) -> None:
    """Make the kernel drop the files at ``path`` from its memory."""
    for file in [path] if path.is_file() else (file for file in path.rglob("*") if file.is_file()):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def used(path: Path) -> int:
    """The total bytes of the files at ``path``."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())


def benchmark(folder: Path, count: int, rounds: int, args: Any) -> None:
    """Make the files that are missing in ``folder``, time the contenders, and report."""
    sources = folder / "folders"
    if not sources.exists():
        make_folders(sources, count)
    for name, whole in (("packed", False), ("whole", True)):
        work = Packing(sources, folder / name, SIZE, whole)
        if not work.finished:
            work.folder.mkdir()
            for _ in pack(work, 0):
                pass
    data = PackedFolders(str(folder / "packed"), batch_size=BATCH, workers=1)
    data.setup()
    records: Any = data.sets["train"]
    wholes: Any = PackedFolders(str(folder / "whole"), image_size=SIZE).load(train=True)
    decoded: Any = ImageFolders(str(sources), image_size=SIZE).load(train=True)
    count = len(records)

    places = {
        "class folders, decoded by Pillow": sources / "train",
        "packed records (ours)": records.path,
        "the same, mapped into memory": records.path,
        "whole pictures, of which squares are read": wholes.path,
        "random crops of packed squares": records.path,
        "random crops of whole pictures": wholes.path,
        "safetensors": folder / "images.safetensors",
        "litdata": folder / "litdata",
        "litdata, in its own sequence": folder / "litdata",
        "JPEGs of 224 pixels in a tar": folder / "images.tar",
    }
    found = [
        lambda indices: tuple(default_collate([decoded[n] for n in indices])),
        records.__getitems__,
        memory_map(records),
        wholes.__getitems__,
        random_crops(records),
        random_crops(wholes),
        tensor_file(folder / "images.safetensors", records),
        *litdata_chunks(folder / "litdata", records),
        jpegs_in_a_tar(folder / "images.tar", records),
    ]
    readers: dict[str, Reader] = {name: reader for name, reader in zip(places, found) if reader}
    baseline = next(iter(readers))

    random = torch.Generator().manual_seed(0)
    batches = [torch.randint(count, (BATCH,), generator=random).tolist() for _ in range(BATCHES)]
    expected = readers[baseline](batches[0])
    same = {name: all(map(torch.equal, reader(batches[0]), expected)) for name, reader in readers.items()}

    def turn(reader: Reader) -> Callable[[], None]:
        def run() -> None:
            for batch in batches:
                reader(batch)

        return run

    turns = {name: turn(reader) for name, reader in readers.items()}
    cpu = torch.device("cpu")
    warm = take_turns(turns, rounds, cpu)
    cold: Times = {name: [] for name in readers}
    for _ in range(rounds):
        for name in readers:
            forget(places[name])
            cold[name].append(seconds(turns[name], cpu))
    loader = data.train_dataloader()
    through: list[float] = [seconds(lambda: [None for _ in loader], cpu) for _ in range(rounds + 1)][1:]
    rows = [
        {
            "contender": name,
            "images/s per core": BATCH * BATCHES / statistics.median(warm[name]),
            "ratio": ratio(warm, name, baseline),
            "from disk": BATCH * BATCHES / statistics.median(cold[name]),
            "ratio from disk": ratio(cold, name, baseline),
            "bytes per image": used(places[name]) // count,
            "same pixels": None if "own sequence" in name or "random crops" in name else "yes" if same[name] else "no",
        }
        for name in readers
    ]
    setting = {"images": count, "size": SIZE, "batch": BATCH, "rounds": rounds}
    setting["images/s of ours through a DataLoader's worker"] = round(len(loader) * BATCH / statistics.median(through))
    report("input", rows, cpu, setting, args.output)
    rate = rows[1]["images/s per core"]
    print(f"goal: {GOAL} images/s per core from the packed set; {'met' if rate >= GOAL else 'missed'}: {rate:.0f}")


def main() -> None:
    """Run the benchmark."""
    parser = arguments("input", "Measure how fast one core reads images, from class folders and packed.")
    parser.add_argument(
        "--folder", type=Path, default=None, help="a folder for the files that it makes (default: a temporary one)"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    count, rounds = (2000, 5) if args.size == "small" else (20000, 10)
    if args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        benchmark(args.folder, count, args.rounds or rounds, args)
    else:
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            benchmark(Path(folder), count, args.rounds or rounds, args)


if __name__ == "__main__":
    sys.exit(main())
