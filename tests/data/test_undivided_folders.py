"""Class folders without test images, of which a part is held out."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from layershuffle.commands.pack import pack_command
from layershuffle.data import DataConfig, ImageFolders, PackedFolders, from_config
from layershuffle.data.sets import images_by_class, paths_of
from layershuffle.errors import UserError

rng = np.random.default_rng(0)
COUNTS = {"cat": 20, "dog": 10, "eel": 2, "fox": 1}


@pytest.fixture
def root(tmp_path):
    """A folder for each class, with so many pictures as ``COUNTS`` says."""
    root = tmp_path / "pictures"
    for name, count in COUNTS.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def set_up(root, stage=None, test_fraction=0.2, **arguments):
    """The data module of the folders, set up. The images have 8 pixels."""
    data = ImageFolders(str(root), image_size=8, workers=0, test_fraction=test_fraction, **arguments)
    data.setup(stage)
    return data


def files(images):
    """The files of a split, each as "class/file"."""
    names = set()
    for path in paths_of(images):
        *_, class_name, file_name = Path(path).parts
        names.add(f"{class_name}/{file_name}")
    return names


def test_each_class_has_its_share_and_no_image_is_in_two_parts(root):
    data = set_up(root)
    assert data.num_classes == 4
    train = data.sets["train"]
    val = data.sets["val"]
    test = data.sets["test"]

    # A fifth of 20, 10, 2 and 1 images; of two images, one is held out, and none of one.
    assert images_by_class(test, 4).tolist() == [4, 2, 1, 0]
    assert (images_by_class(train, 4) > 0).all()
    in_all = images_by_class(train, 4) + images_by_class(val, 4) + images_by_class(test, 4)
    assert in_all.tolist() == list(COUNTS.values())

    assert len(files(train) | files(val) | files(test)) == sum(COUNTS.values())
    assert files(train).isdisjoint(files(test))
    assert files(val).isdisjoint(files(test))
    described = " ".join(data.describe().split())
    assert f"{root}; test images: 20% of each class, drawn with split seed 0" in described


def test_the_part_depends_on_the_split_seed_alone(root):
    first = files(set_up(root).sets["test"])
    assert files(set_up(root, "test").sets["test"]) == first
    assert files(set_up(root, val_fraction=0.3, stratified=False).sets["test"]) == first
    assert files(set_up(root, split_seed=1).sets["test"]) != first


def test_images_that_are_added_leave_the_others_where_they_are(root):
    test_before = files(set_up(root).sets["test"])
    added = set()
    for index in range(20, 24):
        shutil.copy(root / "cat/0.png", root / f"cat/{index}.png")
        added.add(f"cat/{index}.png")
    test_now = files(set_up(root).sets["test"])
    moved = test_now - added - test_before
    assert len(moved) <= 1


def test_a_checkpoint_records_it(root):
    data = set_up(root, split_seed=3)
    again = from_config(DataConfig.from_dict(data.config().to_dict()))
    again.setup("test")
    assert files(again.sets["test"]) == files(data.sets["test"])


def test_folders_with_training_images_alone(root, tmp_path):
    (tmp_path / "divided").mkdir()
    root.rename(tmp_path / "divided/train")
    with pytest.raises(UserError, match="--data.test_fraction"):
        set_up(tmp_path / "divided", test_fraction=None)
    data = set_up(tmp_path / "divided")
    assert [len(data.sets[split]) for split in ("train", "val", "test")] == [23, 3, 7]


@pytest.mark.parametrize("fraction", [None, 0.2])
def test_a_root_that_is_too_deep_names_the_one_that_is_meant(root, tmp_path, fraction):
    with pytest.raises(UserError, match=f"lie directly in {root}/cat, .* {root}$"):
        set_up(root / "cat", test_fraction=fraction)
    divided = tmp_path / "divided"
    shutil.copytree(root, divided / "train")
    with pytest.raises(UserError, match=f"lie directly in {divided}/train/cat, .* {divided}$"):
        set_up(divided / "train/cat", test_fraction=fraction)


def test_a_root_that_is_a_split_names_the_one_that_is_meant(root, tmp_path):
    shutil.copytree(root, tmp_path / "divided/train")
    with pytest.raises(UserError, match=f"folder of a split: .* {tmp_path}/divided$"):
        set_up(tmp_path / "divided/train", test_fraction=None)


def test_what_does_not_fit_is_one_line(root, tmp_path):
    with pytest.raises(UserError, match="--data.test_fraction"):
        set_up(root, test_fraction=None)

    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        set_up(tmp_path / "empty")

    # A part is held out only where there are no test images.
    shutil.copytree(root, tmp_path / "divided/train")
    shutil.copytree(root, tmp_path / "divided/test")
    with pytest.raises(UserError, match="leave test_fraction out"):
        set_up(tmp_path / "divided")

    for fraction in (0, 1, -0.1, float("nan")):
        with pytest.raises(UserError, match="test_fraction"):
            ImageFolders(str(root), test_fraction=fraction)


def test_they_are_packed_as_they_are_read(root, tmp_path):
    pack_command([str(root), f"{tmp_path}/packed", "--size=8", "--workers=0", "--test_fraction=0.2"])
    packed = PackedFolders(f"{tmp_path}/packed", image_size=8, workers=0)
    packed.setup()
    data = set_up(root)
    for split in ("train", "val", "test"):
        assert len(packed.sets[split]) == len(data.sets[split])
        for (image, label), (packed_image, packed_label) in zip(data.sets[split], packed.sets[split]):
            assert torch.equal(image, packed_image)
            assert label == packed_label

    # The packed folder has test images.
    with pytest.raises(UserError, match="leave test_fraction out"):
        PackedFolders(f"{tmp_path}/packed", test_fraction=0.2)
