"""What benchmarks/input.py compares: ways to read a batch of images. Each function here returns such a ``Reader``."""

import io
import itertools
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms.v2.functional import pil_to_tensor

from layershuffle.data.augmentation import Augmentation, Augmented
from layershuffle.data.packed import PackedImages

SIZE = 224
"""The height and the width of the images that are read, in pixels."""

Batch = tuple[Tensor, Tensor]
"""Images, uint8 [batch, 3, SIZE, SIZE], and labels, int64 [batch]."""
Reader = Callable[[list[int]], Batch]
"""Reads the batch of the images with these indices."""


def decoded_by_pillow(images: Any) -> Reader:
    """Reads and decodes the pictures of class folders one by one, as a plain DataLoader does."""

    def read(indices: list[int]) -> Batch:
        pixels, labels = default_collate([images[index] for index in indices])
        return pixels, labels

    return read


def random_crops(records: PackedImages) -> Reader:
    """Reads a random part of each packed picture and makes an image of SIZE pixels of it, as a recipe does."""
    crops = Augmented(records, Augmentation(scale=(0.08, 1.0)), SIZE, seed=0)

    def read(indices: list[int]) -> Batch:
        # The crop of an image depends on the epoch, here 0.
        pixels, labels = crops.__getitems__([(0, index) for index in indices])
        return pixels, labels

    return read


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
            pixels = torch.cat([images[index : index + 1] for index in indices])
        return pixels, records.labels[indices]

    return read


def jpegs_in_a_tar(path: Path, records: PackedImages) -> Reader:
    """Reads the packed images as JPEGs of quality 95 in a tar, like webdataset. Their pixels are not quite the same."""
    if not path.exists():
        with tarfile.open(path, "w") as tar:
            for index in range(len(records)):
                image, _ = records[index]
                content = io.BytesIO()
                Image.fromarray(image.permute(1, 2, 0).numpy()).save(content, "JPEG", quality=95)
                entry = tarfile.TarInfo(f"{index:06d}.jpg")
                entry.size = content.tell()
                tar.addfile(entry, io.BytesIO(content.getvalue()))
    # webdataset reads a tar from the beginning to the end; random access needs to know where each file is.
    with tarfile.open(path) as tar:
        places = [(entry.offset_data, entry.size) for entry in tar]

    def read(indices: list[int]) -> Batch:
        images = []
        with path.open("rb", buffering=0) as file:
            for index in indices:
                offset, size = places[index]
                content = os.pread(file.fileno(), size, offset)
                images.append(pil_to_tensor(Image.open(io.BytesIO(content))))
        return torch.stack(images), records.labels[indices]

    return read


class Numbered:
    """Gives litdata's writer, which runs in another process, the packed images one by one."""

    def __init__(self, records: PackedImages) -> None:
        self.records = records

    def __call__(self, index: int) -> dict[str, Any]:
        """An image and its label, as litdata stores them."""
        image, label = self.records[index]
        return {"image": image, "label": int(label)}


def litdata_chunks(folder: Path, records: PackedImages) -> dict[str, Reader]:
    """Reads litdata's chunks of 64 MB by index, and in litdata's random sequence; nothing if it isn't installed."""
    try:
        import litdata
    except ImportError:
        return {}
    if not folder.exists():
        indices_to_write = list(range(len(records)))
        litdata.optimize(Numbered(records), indices_to_write, output_dir=str(folder), num_workers=1, chunk_bytes="64MB")
    chunks = litdata.StreamingDataset(str(folder))

    def stack(items: list[dict[str, Any]]) -> Batch:
        labels = torch.tensor([item["label"] for item in items])
        return torch.stack([item["image"] for item in items]), labels

    def read_by_index(indices: list[int]) -> Batch:
        return stack([chunks[index] for index in indices])

    def shuffled() -> Iterator[dict[str, Any]]:
        # It is made for this: chunk after chunk, and random only within a chunk. So it gets its own row.
        for epoch in itertools.count():
            yield from litdata.StreamingDataset(str(folder), shuffle=True, seed=epoch)

    stream = shuffled()

    def read_in_sequence(indices: list[int]) -> Batch:
        return stack(list(itertools.islice(stream, len(indices))))

    return {"litdata": read_by_index, "litdata, in its own sequence": read_in_sequence}
