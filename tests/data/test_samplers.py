"""Which training images come, and how often: balanced sets, whatever reads them and however many processes do."""

import numpy as np
import pytest
import torch
from helpers import batches
from PIL import Image
from test_augmentation import Trainer, loader
from torch.utils.data import Dataset

from layershuffle.commands.pack import pack_command
from layershuffle.data import ImageData, ImageFolders, PackedFolders, TensorImages
from layershuffle.data.samplers import TrainingSampler, times
from layershuffle.errors import UserError

COUNTS = (60, 6, 2)
"""How many images each of three classes has."""
IMAGES = sum(COUNTS)
LABELS = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))


class Skewed(ImageData):
    """Images whose labels are ``LABELS``."""

    num_classes = 3

    def load(self, train: bool) -> Dataset:
        rng = torch.Generator().manual_seed(0)
        return TensorImages(torch.randint(256, (IMAGES, 1, 8, 8), generator=rng).to(torch.uint8), LABELS)


def drawn(seed=0, epoch=0, labels=LABELS, ranks=1, rank=0):
    """The indices of the images that a process draws in an epoch."""
    sampler = TrainingSampler(range(IMAGES), 4, seed, Trainer(ranks, rank), labels)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_class_and_every_image_of_a_class_is_equally_likely():
    epochs = torch.tensor([drawn(epoch=epoch) for epoch in range(300)])
    # An epoch draws as many images as there are.
    assert epochs.shape == (300, IMAGES)

    # Each class has a third of all draws. Chi-squared has a mean of about 68 and twice that as its variance: it may
    # be 5 standard deviations above its mean.
    times_drawn = epochs.flatten().bincount(minlength=IMAGES)
    images_of_class = torch.tensor(COUNTS)[LABELS]
    expected = 300 * IMAGES / (3 * images_of_class)
    chi_squared = ((times_drawn - expected) ** 2 / expected).sum().item()
    assert chi_squared < IMAGES + 5 * (2 * IMAGES) ** 0.5

    assert drawn() != drawn(epoch=1)
    assert drawn() != drawn(seed=1)
    # Without labels, each image comes once.
    assert sorted(drawn(labels=None)) == list(range(IMAGES))


def test_processes_share_what_one_process_draws():
    by_one = drawn()
    assert drawn(ranks=2, rank=0) == by_one[0::2]
    assert drawn(ranks=2, rank=1) == by_one[1::2]


def test_in_memory_in_folders_and_packed_the_same_images_are_drawn(tmp_path):
    rng = np.random.default_rng(0)

    def save(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)

    folders = tmp_path / "folders"
    for label, count in enumerate(COUNTS):
        for number in range(count):
            save(folders / f"train/{label}/{number:02}.png")
        save(folders / f"val/{label}/00.png")
    pack_command([str(folders), f"{tmp_path}/packed", "--size=8", "--workers=0"])

    options = {"val_fraction": 0, "batch_size": 4, "workers": 0, "image_size": 8, "balanced": True}

    def training_batches(data):
        data.setup()
        # The seed of a run without a trainer.
        torch.manual_seed(0)
        return batches(data.train_dataloader())

    images, labels = training_batches(ImageFolders(str(folders), **options))
    packed_images, packed_labels = training_batches(PackedFolders(f"{tmp_path}/packed", **options))
    assert torch.equal(packed_images, images)
    assert torch.equal(packed_labels, labels)
    assert labels.tolist() == LABELS[drawn()].tolist()
    assert min(labels.bincount()) > 8


def test_an_image_that_comes_again_is_changed_in_another_way():
    # How many times each has come before.
    assert times(torch.tensor([5, 2, 5, 5, 2, 0])).tolist() == [0, 0, 1, 2, 1, 0]

    # The rarest class has two images, each of which is drawn several times.
    images, labels = batches(loader(Skewed(val_fraction=0, batch_size=4, balanced=True, workers=0)))
    rare = images[labels == 2]
    assert len(rare) > 10
    different = {image.numpy().tobytes() for image in rare}
    assert len(different) > 0.9 * len(rare)

    images_by_workers, _ = batches(loader(Skewed(val_fraction=0, batch_size=4, balanced=True, workers=2)))
    assert torch.equal(images, images_by_workers)


def test_sets_that_do_not_tell_their_labels_are_refused():
    class Untold(Skewed):
        def load(self, train):
            images, labels = super().load(train).__getitems__([0, 60, 66])
            return list(zip(images, labels))

    data = Untold(val_fraction=0, balanced=True)
    data.setup()
    complaint = r"^--data\.balanced needs the labels of all training images, which Untold doesn't"
    with pytest.raises(UserError, match=complaint):
        data.train_dataloader()


def test_a_balanced_run_says_so():
    data = Skewed(balanced=True)
    data.setup()
    assert "every class comes equally often in training" in " ".join(data.describe().split())
