"""Faults that users ran into: each with the value that is right."""

import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import datasets

from layershuffle.data import (
    DataConfig,
    Digits,
    ImageData,
    ImageFolders,
    Resizing,
    TorchvisionImages,
    from_config,
)
from layershuffle.data.loaders import ImageLoader
from layershuffle.data.preprocessing import MOST_OBLONG, resize, whole_shape
from layershuffle.data.sets import TensorImages, labels_of, split_by_class
from layershuffle.data.torchvision_sets import READING
from layershuffle.errors import UserError


class Labelled(ImageData):
    """Tiny images with labels of one's choice."""

    num_classes = 8

    def __init__(self, labels, **kwargs):
        super().__init__(**kwargs)
        self.labels = labels

    def load(self, train):
        images = torch.zeros(len(self.labels), 1, 2, 2, dtype=torch.uint8)
        return TensorImages(images, torch.tensor(self.labels))


SKEWED = [0] * 60 + [1] * 40 + [2] * 20 + [3] * 14 + [4] * 10 + [5] * 6 + [6] * 4 + [7] * 1
"""The labels of 155 images of eight classes, which have fewer and fewer images."""


def images_of_classes(images):
    """How many images each of the eight classes has, [classes]."""
    return labels_of(images).bincount(minlength=8)


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_held_out_and_none_is_lost(seed):
    data = Labelled(SKEWED, split_seed=seed, val_fraction=0.11)
    data.setup()
    trained = images_of_classes(data.sets["train"])
    validated = images_of_classes(data.sets["val"])
    # 11 % of 155, rounded.
    assert int(validated.sum()) == 17
    assert (trained > 0).all()
    assert (validated[:7] > 0).all()
    # Its only image is trained on.
    assert validated[7] == 0
    described = " ".join(data.describe().split())
    assert "the 17 validation images lack 1 of 8 classes: 7" in described


def test_chosen_images_are_of_every_class():
    data = Labelled(SKEWED, train_images=20, test_images=8)
    data.setup()
    assert images_of_classes(data.sets["test"]).tolist() == [1] * 8
    used = images_of_classes(data.sets["train"]) + images_of_classes(data.sets["val"])
    assert (used > 0).all()


def test_a_split_by_class_has_each_image_once():
    images = TensorImages(torch.zeros(100, 1), torch.arange(100) % 10)
    first, second = split_by_class(images, 30, seed=3)
    assert sorted(first.indices + second.indices) == list(range(100))
    assert labels_of(first).bincount().tolist() == [3] * 10


@pytest.mark.parametrize("label", [-1, -100, 8])
def test_labels_of_no_class_are_refused_before_training(label):
    with pytest.raises(UserError, match=f"{label}"):
        Labelled([*SKEWED, label]).setup()


class Untold(Dataset):
    """Images whose labels nobody knows before they are read."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(1, 2, 2, dtype=torch.uint8), -1


def test_a_label_of_no_class_is_refused_when_it_is_read():
    data = Labelled([0])
    data.load = lambda train: Untold()
    data.workers = 0
    data.setup()
    with pytest.raises(UserError, match="label -1"):
        list(data.test_dataloader())


@pytest.mark.parametrize("arguments", [{"workers": -1}, {"workers": 99_999}, {"unreadable": -1}, {"image_size": 0}])
def test_numbers_out_of_bounds(arguments):
    (name,) = arguments
    with pytest.raises(UserError, match=name):
        Digits(**arguments)


@pytest.mark.parametrize("size", [(300_000, 1), (1, 300_000)])
@pytest.mark.parametrize("mode", ["center", "squash", "whole"])
def test_a_very_oblong_picture_is_cropped_before_it_is_resized(tmp_path, size, mode):
    picture = Image.new("RGB", size)
    resized = resize(picture, 8, Resizing(crop_mode=mode))
    # So many times its shorter side is left, and perhaps a pixel for the middle to stay where it is.
    assert max(resized.size) <= 8 * (MOST_OBLONG + 1)
    if mode == "whole":
        picture.save(tmp_path / "oblong.png")
        assert whole_shape(tmp_path / "oblong.png", 8) == (resized.height, resized.width)
    else:
        assert resized.size == (8, 8)


def test_the_middle_of_an_oblong_picture_stays_the_middle():
    """A row of 1,001 black pixels, of which the one in the middle is white."""
    row = np.zeros((1, 1001, 3), np.uint8)
    row[:, 500] = 255
    resized = np.asarray(resize(Image.fromarray(row), 9))
    assert resized[4, 4].tolist() == [255, 255, 255]


class Killed(Untold):
    """Images of which the first one kills the process that reads it."""

    def __init__(self, signal_number):
        self.signal_number = signal_number

    def __getitem__(self, index):
        os.kill(os.getpid(), self.signal_number)


@pytest.mark.parametrize(("signal_number", "word"), [(signal.SIGKILL, "killed"), (signal.SIGBUS, "/dev/shm")])
def test_a_reading_process_that_is_killed_is_one_line(signal_number, word):
    with pytest.raises(UserError, match=word) as raised:
        list(ImageLoader(Killed(signal_number), 2, num_workers=1))
    assert "workers" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_broken_image_names_the_option_that_allows_for_it(tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            (folder / "broken.png").write_bytes(b"no image")
    data = ImageFolders(str(tmp_path), workers=0)
    data.setup()
    with pytest.raises(UserError, match="--data.unreadable 10"):
        list(data.test_dataloader())


def test_a_checkpoint_from_before_has_the_split_that_it_was_trained_on():
    recorded = ImageFolders().config().args
    assert recorded["stratified"] is True
    assert from_config(DataConfig("ImageFolders", recorded)).stratified is True

    # An earlier version didn't know the argument.
    recorded_before = dict(recorded)
    del recorded_before["stratified"]
    assert from_config(DataConfig("ImageFolders", recorded_before)).stratified is False


@pytest.mark.parametrize("name", ["EMNIST", "QMNIST", "CIFAR10"])
@pytest.mark.parametrize("extra", ["download", "root", "transform"])
def test_what_a_checkpoint_records_downloads_nothing(tmp_path, monkeypatch, name, extra):
    downloads = []
    for dataset in (datasets.CIFAR10, datasets.MNIST, datasets.EMNIST, datasets.QMNIST):
        monkeypatch.setattr(dataset, "download", downloads.append)
    recorded = {"dataset": name, "num_classes": 10, "root": str(tmp_path), "test_args": {extra: True}}
    data = from_config(DataConfig("TorchvisionImages", recorded))
    with pytest.raises(UserError, match=extra):
        data.setup("test")
    assert not downloads
    assert not list(tmp_path.iterdir())


def contents(folder):
    """The files and folders below a folder, and when they were changed."""
    return {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("name", sorted(READING))
def test_what_a_checkpoint_records_writes_nothing(tmp_path, monkeypatch, name):
    def refuse(*arguments, **options):
        raise AssertionError("writes or fetches")

    for module in {getattr(datasets, dataset).__module__ for dataset in READING}:
        for function in ("download_and_extract_archive", "download_url", "extract_archive", "download_file"):
            monkeypatch.setattr(f"{module}.{function}", refuse, raising=False)
    for root in (tmp_path / "nowhere", tmp_path):
        before = contents(tmp_path)
        recorded = {"dataset": name, "num_classes": 10, "root": str(root)}
        if name == "EMNIST":
            recorded["train_args"] = {"split": "mnist"}
            recorded["test_args"] = {"split": "mnist", "train": False}
        with pytest.raises(UserError, match=name):
            from_config(DataConfig("TorchvisionImages", recorded)).setup()
        assert contents(tmp_path) == before


def test_archives_are_not_unpacked_for_a_checkpoint(tmp_path, monkeypatch):
    """torchvision's ImageNet unpacks whatever archives it finds, and takes no argument download."""
    unpacked = []
    monkeypatch.setattr("torchvision.datasets.imagenet.parse_devkit_archive", unpacked.append)
    monkeypatch.setattr("torchvision.datasets.imagenet.parse_train_archive", unpacked.append)
    recorded = {"dataset": "ImageNet", "num_classes": 1000, "root": str(tmp_path), "train_args": {"split": "train"}}
    with pytest.raises(UserError, match="data.download"):
        from_config(DataConfig("TorchvisionImages", recorded)).load(train=True)
    assert not unpacked

    # For a user who asks for it they are.
    with pytest.raises(UserError):
        TorchvisionImages(**recorded, download=True).prepare_data()
    assert unpacked


@pytest.mark.parametrize("name", ["Cityscapes", "Kinetics", "PhotoTour", "FakeData", "LSUN", "ImageFolder", None, 3])
def test_a_checkpoint_names_no_set_that_does_more_than_read(name):
    recorded = {"dataset": name, "num_classes": 10}
    with pytest.raises(UserError, match="TorchvisionImages"):
        from_config(DataConfig("TorchvisionImages", recorded))


@pytest.mark.parametrize("name", ["EMNIST", "QMNIST"])
def test_sets_that_pass_download_on_are_downloaded_for_a_user(tmp_path, monkeypatch, name):
    downloads = []

    def download(self):
        downloads.append(self.train)
        raise OSError("no network")

    for dataset in (datasets.MNIST, datasets.EMNIST, datasets.QMNIST):
        monkeypatch.setattr(dataset, "download", download)
    train_args = {"train": True}
    test_args = {"train": False}
    if name == "EMNIST":
        train_args["split"] = "mnist"
        test_args["split"] = "mnist"
    data = TorchvisionImages(name, 10, root=str(tmp_path), download=True, train_args=train_args, test_args=test_args)
    with pytest.raises(UserError, match="could not be downloaded"):
        data.prepare_data()
    assert downloads == [True]
