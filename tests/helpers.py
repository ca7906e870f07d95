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
from layershuffle.orders.protocols import trials

ROOT = Path(__file__).parents[1]
"""The repository."""
SMALL = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 32, "depth": 4, "num_heads": 2}
"""The shape of a model with few weights, for grey images of 8 x 8 pixels."""
GOLDEN = Path(__file__).parent / "checkpoints" / "reference"
"""Small checkpoints and outputs that the LayerShuffle authors' code has made."""
NAMES = ["ShufflingViTForImageClassification", "PositionPredictingDeiTForImageClassification"]
"""Two of the authors' classes of models: GOLDEN has a checkpoint of each."""

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later"),
]
"""How torch says that a GPU's memory is full."""

rng = np.random.default_rng(0)


def configs(*names):
    """The arguments of a command line that take these files of the folder of configs, such as "method/baseline"."""
    return [f"--config={ROOT}/configs/{name}.yaml" for name in names]


DIGITS = configs("model/mini_digits", "data/digits", "trainer/cpu", "optimizer/mini")
"""Arguments that train a small model of the digits."""
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
        # A program that exits with a text has it printed to stderr, and its exit code is 1.
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
    """The images and the labels of all batches, each as one tensor."""
    images, labels = zip(*loader)
    return torch.cat(images), torch.cat(labels)


def fake_cifar100(root, monkeypatch, classes=100):
    """Write a small data set in the layout of CIFAR-100's python version.

    Returns the pixels of the 200 training and the 100 test images by "train" and "test", uint8 [image, value].
    """
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels = {}
    for name, count in (("train", 200), ("test", 100)):
        pixels[name] = rng.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        labels = [index % classes for index in range(count)]
        (folder / name).write_bytes(pickle.dumps({"data": pixels[name], "fine_labels": labels}))
    class_names = [str(label) for label in range(classes)]
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": class_names}))

    # torchvision compares the files with the published ones by their MD5, unless it has none.
    cifar = torchvision.datasets.CIFAR100
    monkeypatch.setattr(cifar, "train_list", [["train", None]])
    monkeypatch.setattr(cifar, "test_list", [["test", None]])
    monkeypatch.setattr(cifar, "meta", cifar.meta | {"md5": None})
    return pixels


def fake_fashion_mnist(root):
    """Write a small data set in Fashion-MNIST's IDX layout; returns the pixels of its 20 test images."""
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for name, count in (("train", 50), ("t10k", 20)):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx_header(count, 28, 28) + images.tobytes())
        labels = bytes(index % 10 for index in range(count))
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(idx_header(count) + labels)
    return images


def idx_header(*shape):
    """What an IDX file of bytes begins with: their type, the number of dimensions, and the size of each."""
    unsigned_bytes = 0x800
    numbers = [unsigned_bytes + len(shape), *shape]
    return b"".join(number.to_bytes(4, "big") for number in numbers)


def fake_imagenet(root):
    """Write class folders with the oddities of ImageNet: grey, CMYK, palette, transparency, PNG named .JPEG.

    Each of two classes has five training and five validation images. Returns the folder.
    """
    for split in ("train", "val"):
        for label, name in enumerate(("n01440764", "n01443537")):
            folder = root / split / name
            folder.mkdir(parents=True)
            pixels = rng.integers(0, 256, (40, 60 + label, 3), dtype=np.uint8)
            for mode in ("RGB", "L", "CMYK"):
                Image.fromarray(pixels).convert(mode).save(folder / f"{mode}.JPEG")
            for mode in ("P", "RGBA"):
                Image.fromarray(pixels).convert(mode).save(folder / f"{mode}.JPEG", format="PNG")
    return root


def paths(name):
    """The files of one of the authors' models, see NAMES: its weights and its config."""
    return GOLDEN / f"{name}.safetensors", GOLDEN / f"{name}.config.json"


def reference_folder(tmp_path, name=NAMES[0]):
    """Make ``tmp_path`` a folder as the authors' training script leaves it; returns it."""
    checkpoint, config = paths(name)
    shutil.copy(checkpoint, tmp_path / "model.safetensors")
    shutil.copy(config, tmp_path / "config.json")
    return tmp_path


def chosen_by_hand(model, images):
    """The index of the order that each image chooses, by the formula of arXiv 2103.03457."""
    predictor = model.choice.predictor
    chosen = []
    for tokens in model.embed(images).tokens:
        logits = predictor.weight @ tokens.mean(dim=0) + predictor.bias
        chosen.append(int(logits.argmax()))
    return chosen


def by_variant(protocol, depth, **settings):
    """The orders of a protocol, in lists by the values that distinguish their variants."""
    orders = {}
    for trial in trials([protocol], depth, **settings):
        orders.setdefault(tuple(trial.variant.values()), []).append(trial.order)
    return orders
