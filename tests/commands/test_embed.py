"""Features of pictures and of data sets, in files that numpy reads, against timm's own."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import fails
from PIL import Image
from torchvision import transforms

import layershuffle
from layershuffle.commands.embed import embed_command
from layershuffle.errors import UserError
from layershuffle.orders import Order

NAME = "vit_tiny_patch16_224"
WEIGHTS = ["--pretrained=backbone.pth", "--img_size=32", "--accelerator=cpu"]
OUTPUT = "--output=x.npz"
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
    """timm's model with the weights of backbone.pth."""
    torch.manual_seed(0)
    return timm.create_model(NAME, num_classes=0, img_size=32).eval()


def expected(paths, order=range(12)):
    """What plain timm computes of pictures that torchvision has preprocessed."""
    model = backbone()
    model.blocks = torch.nn.Sequential(*[model.blocks[layer] for layer in order])
    config = timm.data.resolve_data_config(pretrained_cfg=model.pretrained_cfg)
    preprocess = transforms.Compose(
        [
            transforms.Resize(int(32 / config["crop_pct"]), transforms.InterpolationMode(config["interpolation"])),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize(config["mean"], config["std"]),
        ]
    )
    images = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in paths])
    with torch.inference_mode():
        return model(images).numpy()


def test_pictures_have_timms_features(capsys):
    # Six whole pictures in a folder, and one of another.
    embed_command([NAME, "pets/test", "pets/train/dog/0.png", *WEIGHTS, OUTPUT, "--batch_size=4"])
    assert "7 pictures" in capsys.readouterr().out
    with np.load("x.npz", allow_pickle=False) as file:
        assert set(file) == {"features", "paths", "orders", "about"}
        paths = file["paths"].tolist()
        assert len(paths) == 7
        assert file["features"].dtype == np.float32
        assert np.allclose(file["features"], expected(paths), atol=1e-4)
        assert Order(file["orders"].item()) == Order(range(12))
        about = json.loads(file["about"].item())
    assert about["unreadable"][0]["picture"] == "pets/test/cat/broken.png"
    loaded = layershuffle.load(NAME, "backbone.pth", num_classes=0, img_size=32)
    assert about["model"]["sha256"] == loaded.info.sha256
    assert about["image_format"]["size"] == 32
    assert about["image_format"]["interpolation"] == "bicubic"
    assert about["versions"]["layershuffle"] == layershuffle.__version__


def test_a_data_set_has_labels_and_several_orders_have_a_dimension():
    folders = ["--data=ImageFolders", "--data.root=pets", "--data.unreadable=1", "--data.workers=0"]
    embed_command([NAME, *WEIGHTS, OUTPUT, *folders, "--random_orders=2", "--split=test"])
    with np.load("x.npz", allow_pickle=False) as file:
        assert set(file) == {"features", "paths", "labels", "class_names", "orders", "about"}
        paths = file["paths"].tolist()
        names = file["class_names"][file["labels"]].tolist()
        assert names == [Path(path).parent.name for path in paths]
        assert names.count("cat") == 3
        assert names.count("dog") == 3
        orders = [Order(text) for text in file["orders"].tolist()]
        assert len(set(orders)) == 2
        for order, features in zip(orders, file["features"]):
            layers = [step.units[0].layer for step in order]
            assert np.allclose(features, expected(paths, layers), atol=1e-4)
        about = json.loads(file["about"].item())
    assert about["data"]["args"]["root"] == "pets"
    assert about["split"] == "test"
    assert about["seed"] == 0


def test_images_in_memory_have_no_paths_and_a_checkpoint_knows_its_data(shuffled_digits):
    embeddings = layershuffle.embed(shuffled_digits, order="2 1 0", accelerator="cpu", batch_size=100)
    assert embeddings.paths is None
    assert embeddings.features.shape == (359, 64)
    assert embeddings.labels.shape == (359,)
    assert embeddings.orders == [Order("2 1 0")]
    in_all_layers = layershuffle.embed(shuffled_digits, accelerator="cpu")
    assert np.abs(embeddings.features - in_all_layers.features).max() > 0.1


def test_images_that_choose_their_orders_and_a_model_that_stays_as_it_is(small):
    model = small(choices=["sequential", "3 2 1 0"], in_chans=3)
    loaded = layershuffle.LoadedModel(model, layershuffle.load("mini_glyphs").info)
    embeddings = layershuffle.embed(loaded, ["pets/train"], accelerator="cpu")
    assert embeddings.orders == []
    assert embeddings.features.shape == (6, 32)
    assert model.classifier is None


def test_a_full_disk_leaves_nothing_half_written(monkeypatch, capsys, tmp_path):
    Path("x.npz").write_bytes(b"earlier")
    fsync = os.fsync

    def fsync_on_full_disk(descriptor):
        """Only the folder of the output is on the full disk."""
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).parent == tmp_path:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync_on_full_disk)
    line = fails(capsys, embed_command, NAME, "pets/train", *WEIGHTS, OUTPUT)
    assert "No space left" in line
    assert Path("x.npz").read_bytes() == b"earlier"
    assert not list(tmp_path.glob(".x.npz*"))

    # The line ends with the file that the features were saved in instead.
    *_, elsewhere = line.split(" ")
    with np.load(elsewhere) as file:
        assert len(file["features"]) == 6


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["nowhere", OUTPUT], "nowhere"),
        (["pets/train"], "--output"),
        (["pets/train", "--output=x.csv"], "x.csv"),
        (["pets/train", OUTPUT, "--data=Digits"], "--data"),
        (["pets/train", OUTPUT, "--order=0 1", "--random_orders=2"], "--random_orders"),
        (["pets/train", OUTPUT, "--order=12"], "layer 12"),
        ([OUTPUT], "--data"),
        (["pets/test/cat/broken.png", OUTPUT], "no picture"),
    ],
)
def test_what_can_not_be_embedded(capsys, args, complaint):
    assert complaint in fails(capsys, embed_command, NAME, *args, *WEIGHTS)
    assert not Path("x.npz").exists()


def test_pictures_and_data_exclude_each_other():
    with pytest.raises(UserError, match="data set"):
        layershuffle.embed("mini_glyphs", ["pets"], "glyphs")
