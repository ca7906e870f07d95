"""Which training images come, and how often: balanced sets, whatever reads them and however many processes do."""

import shutil

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
LABELS = torch.arange(3).repeat_interleave(torch.tensor(COUNTS))


class Skewed(ImageData):
    num_classes = 3

    def load(self, train: bool) -> Dataset:
        rng = torch.Generator().manual_seed(0)
        return TensorImages(torch.randint(256, (68, 1, 8, 8), generator=rng).to(torch.uint8), LABELS)


def drawn(seed=0, epoch=0, labels=LABELS, ranks=1, rank=0):
    sampler = TrainingSampler(range(68), 4, seed, Trainer(ranks, rank), labels)
    sampler.set_epoch(epoch)
    return list(sampler)


def test_every_class_and_every_image_of_a_class_is_equally_likely():
    epochs = torch.tensor([drawn(epoch=epoch) for epoch in range(300)])
    assert epochs.shape == (300, 68)  # as many images as there are
    images = epochs.flatten().bincount(minlength=68)
    expected = 300 * 68 / (3 * torch.tensor(COUNTS)[LABELS])
    assert (((images - expected) ** 2 / expected).sum() < 68 + 5 * (2 * 68) ** 0.5).item()  # chi-squared, 5 sigma
    assert drawn() != drawn(epoch=1)
    assert drawn() != drawn(seed=1)
    assert sorted(drawn(labels=None)) == list(range(68))


def test_processes_share_what_one_process_draws():
    parts = [drawn(ranks=2, rank=rank) for rank in (0, 1)]
    assert [image for pair in zip(*parts) for image in pair] == drawn()


def test_in_memory_in_folders_and_packed_the_same_images_are_drawn(tmp_path):
    rng = np.random.default_rng(0)
    for split, name, count in (*(("train", str(at), count) for at, count in enumerate(COUNTS)), ("val", "0", 1)):
        for at in range(count):
            path = tmp_path / "folders" / split / name / f"{at:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    for name in "12":
        shutil.copytree(tmp_path / "folders/val/0", tmp_path / "folders/val" / name)
    pack_command([f"{tmp_path}/folders", f"{tmp_path}/packed", "--size=8", "--workers=0"])
    options = {"val_fraction": 0, "batch_size": 4, "workers": 0, "image_size": 8, "balanced": True}
    found = []
    for data in (ImageFolders(f"{tmp_path}/folders", **options), PackedFolders(f"{tmp_path}/packed", **options)):
        data.setup()
        torch.manual_seed(0)  # the seed of a run without a trainer
        found.append(batches(data.train_dataloader()))
    assert all(map(torch.equal, *found))
    assert found[0][1].tolist() == LABELS[drawn()].tolist()
    assert min(found[0][1].bincount()) > 8


def test_an_image_that_comes_again_is_changed_in_another_way():
    assert times(torch.tensor([5, 2, 5, 5, 2, 0])).tolist() == [0, 0, 1, 2, 1, 0]
    images, labels = batches(loader(Skewed(val_fraction=0, batch_size=4, balanced=True, workers=0)))
    rare = {image.numpy().tobytes() for image in images[labels == 2]}
    assert len(rare) > 0.9 * (labels == 2).sum() > 9
    with_workers = batches(loader(Skewed(val_fraction=0, batch_size=4, balanced=True, workers=2)))
    assert torch.equal(images, with_workers[0])


def test_sets_that_do_not_tell_their_labels_are_refused():
    class Untold(Skewed):
        def load(self, train):
            return [(image, label) for image, label in zip(*super().load(train).__getitems__([0, 60, 66]))]

    data = Untold(val_fraction=0, balanced=True)
    data.setup()
    with pytest.raises(
        UserError, match=r"^--data\.balanced needs the labels of all training images, which Untold doesn't"
    ):
        data.train_dataloader()


def test_a_balanced_run_says_so():
    data = Skewed(balanced=True)
    data.setup()
    assert "every class comes equally often in training" in " ".join(data.describe().split())
