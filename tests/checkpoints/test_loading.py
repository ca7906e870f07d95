"""What ``layershuffle.load`` makes of the things that it takes."""

import re
from pathlib import Path

import pytest
import torch
from helpers import SMALL

from layershuffle import create_model
from layershuffle.checkpoints.checkpoint import is_file_path, read_checkpoint
from layershuffle.checkpoints.loading import load, trained_on
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.errors import UserError

CONFIG = {"name": "vit_tiny_patch16_224", "num_classes": 5, "position": "none", **SMALL}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save(path, **changed):
    """Save a checkpoint of a small model, with other entries besides or instead; returns the model."""
    model = create_model(**CONFIG)
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    content = {"state_dict": weights, "global_step": 7, METADATA_KEY: {"model": CONFIG, "seed": 3}}
    torch.save(content | changed, path)
    return model


def test_a_checkpoint(folder, images):
    expected = save("run.ckpt").eval()
    for path in ("run.ckpt", Path("run.ckpt")):
        loaded = load(path)
        assert torch.equal(loaded.model(images).logits, expected(images).logits)
        assert loaded.info.name == "run"
        assert loaded.info.seed == 3
        assert loaded.info.method is None
    assert read_checkpoint("run.ckpt").global_step == 7
    # A results file says of a checkpoint what isn't known.
    assert loaded.info.to_json()["method"] is None


def test_averaged_weights_are_said_to_be(folder, caplog):
    caplog.set_level("INFO")
    save("run.ckpt")
    load("run.ckpt")
    assert "averaged" not in caplog.text

    # Lightning saves the raw weights beside averaged ones.
    save("run.ckpt", current_model_state={})
    load("run.ckpt")
    assert "run.ckpt: using the averaged weights" in caplog.text


@pytest.mark.parametrize(
    "changed", [{"state_dict": [1]}, {"state_dict": {"model.x": 1}}, {"global_step": -1}, {"global_step": "x"}], ids=str
)
def test_a_checkpoint_with_values_that_cannot_be(folder, changed):
    save("run.ckpt", **changed)
    with pytest.raises(UserError, match=r"run\.ckpt is damaged"):
        load("run.ckpt")


def test_weights_that_travel_with_the_package_as_those_of_a_config(folder):
    of_config = load("model/mini_glyphs")
    published = load("mini_glyphs")
    assert of_config.info.sha256 == published.info.sha256
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(of_config.model(images).logits, published.model(images).logits)


def test_a_config(folder):
    loaded = load("mini_digits", pretrained="random", num_classes=10)
    assert loaded.model.depth == 12
    assert loaded.info.num_classes == 10
    with pytest.raises(UserError, match="--pretrained"):
        load("mini_digits")

    Path("configs/model").mkdir(parents=True)
    Path("configs/model/mine.yaml").write_text(
        "model: {name: deit_tiny_distilled_patch16_224, head: class, compile: true, timm_args: {depth: 2}}"
    )
    loaded = load("mine", pretrained="random", num_classes=3)
    assert loaded.model.depth == 2
    assert loaded.info.config["head"] == "class"

    Path("configs/model/none.yaml").write_text("data: {}")
    with pytest.raises(UserError, match="names no model"):
        load("none")


def test_what_is_none_of_these(folder):
    Path("empty").mkdir()
    for source, complaint in [
        ("nothing", "timm has no model named nothing"),
        ("nothing", "there is no file or folder nothing"),
        ("mini_glyps", "(did you mean mini_glyphs?)"),
        ("nothing.ckpt", "there is no file nothing.ckpt"),
        ("nothing.pth.tar", "there is no file nothing.pth.tar"),
        ("empty", "config.json"),
    ]:
        with pytest.raises(UserError, match=re.escape(complaint)):
            load(source)
        is_file = source.startswith("nothing.")
        if not is_file:
            assert trained_on(source) is None


def test_a_file_in_place_of_a_models_name_leads_to_the_option_for_weights(folder):
    save("run.ckpt")
    with pytest.raises(UserError, match=r"--model\.pretrained run\.ckpt"):
        create_model("run.ckpt", 5)


def test_paths_are_told_from_names(folder):
    for source in ("a.ckpt", "a/b", "a.safetensors"):
        assert is_file_path(source)
    for source in ("vit_tiny_patch16_224", "hf-hub:timm/vit_tiny_patch16_224", "mini_glyphs", "."):
        assert not is_file_path(source)
    Path("vit_tiny_patch16_224").write_bytes(b"")
    assert is_file_path("vit_tiny_patch16_224")
