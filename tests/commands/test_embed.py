"""Features of pictures and of data sets, in files that numpy reads, against timm's own."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import SMALL, fails
from PIL import Image
from torchvision import transforms

import layershuffle
from layershuffle.commands.embed import embed_command
from layershuffle.errors import UserError
from layershuffle.orders import Order

NAME = "vit_tiny_patch16_224"
TIMM = [NAME, "--pretrained=backbone.pth", "--img_size=32", "--accelerator=cpu", "--output=x.npz"]
rng = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def pets(tmp_path, monkeypatch):
    """Class folders with pictures, one of which is broken, and weights without a classifier."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = Path("pets") / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                pixels = rng.integers(0, 256, (40 + number, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    whole = Path("pets/test/cat/1.png").read_bytes()
    Path("pets/test/cat/broken.png").write_bytes(whole[: len(whole) // 2])
    torch.save(backbone().state_dict(), "backbone.pth")


def backbone():
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=0, img_size=32).eval()


def expected(paths, order=range(12)):
    """What plain timm computes of pictures that torchvision has preprocessed."""
    model = backbone()
    model.blocks = torch.nn.Sequential(*(model.blocks[layer] for layer in order))
    config = timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    resize = transforms.Resize(int(32 / config["crop_pct"]), transforms.InterpolationMode(config["interpolation"]))
    normalise = transforms.Normalize(config["mean"], config["std"])
    prepare = transforms.Compose([resize, transforms.CenterCrop(32), transforms.ToTensor(), normalise])
    images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        return model(images).numpy()


def test_pictures_have_timms_features(capsys):
    embed_command([NAME, "pets/test", "pets/train/dog/0.png", *TIMM[1:], "--batch_size=4"])
    assert "7 pictures" in capsys.readouterr().out
    with np.load("x.npz", allow_pickle=False) as file:
        assert set(file) == {"features", "paths", "orders", "about"}
        paths = file["paths"].tolist()
        assert file["features"].dtype == np.float32
        assert np.allclose(file["features"], expected(paths), atol=1e-4)
        assert Order(file["orders"].item()) == Order(range(12))
        about = json.loads(file["about"].item())
    assert len(paths) == 7
    assert about["unreadable"][0]["picture"] == "pets/test/cat/broken.png"
    assert about["model"]["sha256"] == layershuffle.load(NAME, "backbone.pth", 0, 32).info.sha256
    assert (about["image_format"]["size"], about["image_format"]["interpolation"]) == (32, "bicubic")
    assert about["versions"]["layershuffle"] == layershuffle.__version__


def test_a_data_set_has_labels_and_several_orders_have_a_dimension():
    folders = ["--data=ImageFolders", "--data.root=pets", "--data.unreadable=1", "--data.workers=0"]
    embed_command([*TIMM, *folders, "--random_orders=2", "--split=test"])
    with np.load("x.npz", allow_pickle=False) as file:
        assert set(file) == {"features", "paths", "labels", "class_names", "orders", "about"}
        paths = file["paths"].tolist()
        names = file["class_names"][file["labels"]].tolist()
        assert names == [Path(path).parent.name for path in paths]
        assert names.count("cat") == names.count("dog") == 3
        orders = [Order(text) for text in file["orders"].tolist()]
        assert len(set(orders)) == 2
        for order, features in zip(orders, file["features"]):
            assert np.allclose(features, expected(paths, [step.units[0].layer for step in order]), atol=1e-4)
        about = json.loads(file["about"].item())
    assert about["data"]["args"]["root"] == "pets"
    assert (about["split"], about["seed"]) == ("test", 0)


def test_images_in_memory_have_no_paths_and_a_checkpoint_knows_its_data(shuffled_digits):
    embeddings = layershuffle.embed(shuffled_digits, order="2 1 0", accelerator="cpu", batch_size=100)
    assert embeddings.paths is None
    assert embeddings.features.shape == (359, 64)
    assert embeddings.labels.shape == (359,)
    assert embeddings.orders == [Order("2 1 0")]
    assert np.abs(embeddings.features - layershuffle.embed(shuffled_digits, accelerator="cpu").features).max() > 0.1


def test_images_that_choose_their_orders_and_a_model_that_stays_as_it_is(choosy, small):
    model = small(choices=["sequential", "3 2 1 0"], **{**SMALL, "in_chans": 3})
    loaded = layershuffle.LoadedModel(model, layershuffle.load("mini_glyphs").info)
    embeddings = layershuffle.embed(loaded, ["pets/train"], accelerator="cpu")
    assert embeddings.orders == []
    assert embeddings.features.shape == (6, 32)
    assert model.classifier is None


def test_a_full_disk_leaves_nothing_half_written(monkeypatch, capsys, tmp_path):
    Path("x.npz").write_bytes(b"earlier")
    real = os.fsync

    def full(file):
        if Path(os.readlink(f"/proc/self/fd/{file}")).parent == tmp_path:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", full)
    said = fails(capsys, embed_command, NAME, "pets/train", *TIMM[1:])
    assert "No space left" in said
    assert Path("x.npz").read_bytes() == b"earlier"
    assert not list(tmp_path.glob(".x.npz*"))
    with np.load(said.rpartition(" ")[2]) as file:
        assert len(file["features"]) == 6


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ([NAME, "nowhere", *TIMM[1:]], "nowhere"),
        ([NAME, "pets/train", *TIMM[1:-1]], "--output"),
        ([NAME, "pets/train", *TIMM[1:], "--output=x.csv"], "x.csv"),
        ([NAME, "pets/train", *TIMM[1:], "--data=Digits"], "--data"),
        ([NAME, "pets/train", *TIMM[1:], "--order=0 1", "--random_orders=2"], "--random_orders"),
        ([NAME, "pets/train", *TIMM[1:], "--order=12"], "layer 12"),
        ([NAME, *TIMM[1:]], "--data"),
        ([NAME, "pets/test/cat/broken.png", *TIMM[1:]], "no picture"),
    ],
)
def test_what_can_not_be_embedded(capsys, args, complaint):
    assert complaint in fails(capsys, embed_command, *args)
    assert not Path("x.npz").exists()


def test_pictures_and_data_exclude_each_other():
    with pytest.raises(UserError, match="data set"):
        layershuffle.embed("mini_glyphs", ["pets"], "glyphs")
