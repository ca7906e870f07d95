"""A pretrained head serves the classes of the data by their names, not by their numbers."""

import pytest
import torch
from helpers import SMALL

from layershuffle import create_model
from layershuffle.checkpoints.metadata import METADATA_KEY
from layershuffle.models.weights import read_file
from layershuffle.training.pretrained_head import match_head

NAMES = ["apple", "fern", "sea", "sun"]
TURNED = ["sun", "apple", "fern", "sea"]


OTHERS = ["apple", "fern", "sea", "zebra"]


@pytest.fixture(params=["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def saved(request, tmp_path):
    """The path of a checkpoint of the four classes ``NAMES``, and a model that begins with its weights."""
    config = {"name": request.param, "num_classes": 4, "position": "none", **SMALL}
    torch.manual_seed(0)
    weights = {f"model.{name}": value for name, value in create_model(**config).state_dict().items()}
    data = {"class": "Words", "args": {}, "classes": NAMES}
    path = str(tmp_path / "words.ckpt")
    torch.save({"state_dict": weights, METADATA_KEY: {"model": config, "data": data}}, path)
    return path, create_model(**config, pretrained=path).eval()


def copied_weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_rows_follow_the_sequence_of_the_data(saved):
    path, model = saved
    images = torch.randn(3, 1, 8, 8)
    before = model(images).logits

    match_head(model, path, TURNED, seed=0)
    numbers_in_checkpoint = [NAMES.index(name) for name in TURNED]
    torch.testing.assert_close(model(images).logits, before[:, numbers_in_checkpoint])


@pytest.mark.parametrize("names", [NAMES, None, ["1", "2", "3"]])
def test_a_head_stays_where_its_classes_fit_or_are_unknown(saved, names):
    path, model = saved
    before = copied_weights(model)
    match_head(model, path, names, seed=0)

    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_other_classes_get_a_new_head_and_the_same_backbone(saved, caplog):
    path, model = saved
    caplog.set_level("INFO")
    before = copied_weights(model)
    match_head(model, path, OTHERS, seed=1)

    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert "vit.head.weight" in changed
    # A distilled model has a second head.
    assert {name for name in changed if "weight" in name} <= {"vit.head.weight", "vit.head_dist.weight"}
    assert not any(name.startswith("vit.blocks") for name in changed)
    assert "zebra" in caplog.text

    # The seed decides the new head.
    first = model.vit.head.weight.clone()
    match_head(model, path, OTHERS, seed=1)
    assert torch.equal(model.vit.head.weight, first)


@pytest.mark.parametrize("pretrained", [False, True, "timms.pth"])
def test_weights_without_names(saved, tmp_path, monkeypatch, pretrained):
    monkeypatch.chdir(tmp_path)
    path, model = saved
    weights = {name.removeprefix("model.vit."): value for name, value in read_file(path)["state_dict"].items()}
    torch.save(weights, "timms.pth")
    before = model.vit.head.weight.clone()
    match_head(model, pretrained, TURNED, seed=0)

    assert torch.equal(model.vit.head.weight, before)
