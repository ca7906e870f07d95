"""Small models, made-up data sets and commands that the tests share."""

import functools
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from layershuffle.commands.errors import run

ROOT = Path(__file__).parents[1]
SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 4, "num_heads": 2}
GOLDEN = Path(__file__).parent / "checkpoints" / "reference"
NAMES = ["ShufflingViTForImageClassification", "PositionPredictingDeiTForImageClassification"]

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
]
"""How torch says that a GPU's memory is full."""

rng = np.random.default_rng(0)


def configs(*names):
    return [f"--config={ROOT}/configs/{name}.yaml" for name in names]


DIGITS = configs("model/mini_digits", "data/digits", "trainer/cpu", "optimizer/mini")
QUIET = ["--trainer.enable_progress_bar=false"]


def train(args):
    """Train as on a command line; returns the trainer."""
    from layershuffle.commands.train import train_command  # imports Lightning, which most tests don't need

    return train_command(list(args)).trainer


def fails(capsys, command, *args):
    """Run a command that must fail as users should see it: one line on stderr, exit code not 0. Returns the line."""
    with pytest.raises(SystemExit) as stop:
        run(lambda: command(list(args)))
    if isinstance(stop.value.code, str):
        print(stop.value.code, file=sys.stderr)
    else:
        assert stop.value.code != 0
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def hide_package(patch):
    """Let every import of this package fail, also of what is imported already, as if it were not installed."""
    for name in list(sys.modules):
        if name.split(".")[0] == "layershuffle":
            patch.setitem(sys.modules, name, None)


def read_programs_once(patch):
    """Let a file of torch.export be read only once however often it is loaded: that takes longer than to run it."""
    read = functools.cache(torch.export.load)
    patch.setattr(torch.export, "load", lambda path: read(str(path)))


def batches(loader):
    images, labels = zip(*loader)
    return torch.cat(images), torch.cat(labels)


def fake_cifar100(root, monkeypatch, classes=100):
    """A small data set in the layout of CIFAR-100's python version."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels = {}
    for name, count in (("train", 200), ("test", 100)):
        pixels[name] = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
        labels = [at % classes for at in range(count)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels[name], "fine_labels": labels}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [str(at) for at in range(classes)]}))
    cifar = torchvision.datasets.CIFAR100
    for attribute, names in (("train_list", ["train"]), ("test_list", ["test"])):
        # torchvision compares the files with the published ones by their MD5.
        monkeypatch.setattr(cifar, attribute, [[name, None] for name in names])
    monkeypatch.setattr(cifar, "meta", {**cifar.meta, "md5": None})
    return pixels


def fake_fashion_mnist(root):
    """A small data set in Fashion-MNIST's IDX layout."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 50), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        header = b"".join(value.to_bytes(4, "big") for value in (0x803, count, 28, 28))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = bytes(at % 10 for at in range(count))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(
            (0x801).to_bytes(4, "big") + count.to_bytes(4, "big") + labels
        )
    return images


def fake_imagenet(root):
    """Class folders with the oddities of ImageNet: grey, CMYK, palette, transparency, PNG named .JPEG."""
    for split in ("train", "val"):
        for at, name in enumerate(("n01440764", "n01443537")):
            folder = root / split / name
            folder.mkdir(parents=True)
            pixels = rng.integers(0, 256, (40, 60 + at, 3), dtype=np.uint8)
            for mode in ("RGB", "L", "CMYK"):
                Image.fromarray(pixels).convert(mode).save(folder / f"{mode}.JPEG")
            for mode in ("P", "RGBA"):
                Image.fromarray(pixels).convert(mode).save(folder / f"{mode}.JPEG", format="PNG")
    return root


def paths(name):
    return GOLDEN / f"{name}.safetensors", GOLDEN / f"{name}.config.json"


def reference_folder(tmp_path, name=NAMES[0]):
    """A folder as the authors' training script leaves it."""
    checkpoint, config = paths(name)
    shutil.copy(checkpoint, tmp_path / "model.safetensors")
    shutil.copy(config, tmp_path / "config.json")
    return tmp_path


def chosen_by_hand(model, images):
    """Which order each image chooses, by the formula of arXiv 2103.03457."""
    tokens = model.embed(images).tokens
    predictor = model.choice.predictor
    return [int((predictor.weight @ image.mean(0) + predictor.bias).argmax()) for image in tokens]
