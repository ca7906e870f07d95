"""How images are resized, apart from what timm and PIL make of them (test_sets.py, test_pictures.py)."""

import torch
from torchvision.transforms import InterpolationMode

from layershuffle.data import Resizing
from layershuffle.data.preprocessing import resize, skip_unreadable

IMAGES = torch.randint(0, 256, (2, 3, 40, 60), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_what_is_not_said_is_as_in_the_paper():
    assert Resizing().mode is InterpolationMode.BILINEAR
    assert torch.equal(resize(IMAGES, 32), resize(IMAGES, 32, Resizing(1.0, "bilinear", "center")))


def test_what_a_set_says_comes_before_what_a_model_says():
    model = Resizing(0.9, "bicubic", "squash")
    assert Resizing().or_else(model) == model
    assert Resizing(crop_pct=0.5).or_else(model) == Resizing(0.5, "bicubic", "squash")
    assert model.or_else(Resizing(1.0, "bilinear", "center")) == model


def test_each_mode_has_its_shape():
    assert resize(IMAGES, 32, Resizing(crop_mode="center")).shape[-2:] == (32, 32)
    assert resize(IMAGES, 32, Resizing(crop_mode="squash")).shape[-2:] == (32, 32)
    assert resize(IMAGES, 32, Resizing(crop_mode="whole")).shape[-2:] == (32, 48)


def test_a_batch_of_which_nothing_can_be_read_is_empty():
    images, labels = skip_unreadable([None, None])
    assert len(images) == 0
    assert images.dtype == torch.uint8
    assert len(labels) == 0
    assert labels.dtype == torch.int64
