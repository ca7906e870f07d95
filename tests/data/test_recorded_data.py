"""A model that may have been trained on some of the images that it is studied on."""

import numpy as np
import pytest
import torch
from helpers import SMALL
from PIL import Image

from layershuffle import create_model, evaluate
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.data import Digits, ImageFolders, warn_of_training_images

CONFIG = {"name": "vit_tiny_patch16_224", "num_classes": 2, "position": "none", **SMALL, "in_chans": 3}


@pytest.fixture
def root(tmp_path):
    """Two class folders with ten pictures each."""
    root = tmp_path / "pictures"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for index in range(10):
            pixels = np.full((8, 8, 3), 20 * index, np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return str(root)


@pytest.mark.parametrize(
    ("split", "other", "named"),
    [
        ("test", {}, []),
        ("test", {"batch_size": 3, "val_fraction": 0.3, "test_images": 2, "stratified": False}, []),
        ("test", {"split_seed": 1}, ["split_seed"]),
        ("test", {"test_fraction": 0.5}, ["test_fraction"]),
        ("val", {"split_seed": 1, "stratified": False}, ["split_seed", "stratified"]),
        ("val", {"val_fraction": 0.3, "train_images": 9}, ["val_fraction", "train_images"]),
        # The test images validate, and they are the same.
        ("val", {"val_fraction": 0}, []),
    ],
)
def test_options_that_decide_the_images_are_compared(root, caplog, split, other, named):
    arguments = {"root": root, "test_fraction": 0.2, "val_fraction": 0.1}
    recorded = ImageFolders(**arguments).config()
    data = ImageFolders(**{**arguments, **other})
    warn_of_training_images(recorded, data, split)
    assert len(caplog.messages) == (1 if named else 0)
    mentioned = [name for name in recorded.args if f"{name} is" in caplog.text]
    assert sorted(mentioned) == sorted(named)


def test_a_fixed_test_set_stays_what_it_is(caplog):
    recorded = Digits().config()
    warn_of_training_images(recorded, Digits(split_seed=5), "test")
    assert not caplog.messages
    warn_of_training_images(recorded, Digits(split_seed=5), "val")
    assert len(caplog.messages) == 1


def test_a_study_of_other_test_images_warns(root, tmp_path, caplog):
    weights = create_model(**CONFIG).state_dict()
    recorded = ImageFolders(root, test_fraction=0.2).config()
    checkpoint = {
        "state_dict": {f"model.{name}": value for name, value in weights.items()},
        METADATA_KEY: {"model": CONFIG, "data": recorded.to_dict()},
    }
    torch.save(checkpoint, tmp_path / "a.ckpt")

    # With the seed of the training, 0, there is no warning.
    for seed in (0, 1):
        data = ImageFolders(root, test_fraction=0.2, split_seed=seed, workers=0)
        evaluate(tmp_path / "a.ckpt", data, protocols=["sequential"], accelerator="cpu")
    (message,) = [text for text in caplog.messages if "trained on" in text]
    assert "split_seed is 1 and was 0" in message.replace(" here", "")
