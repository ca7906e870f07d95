"""The published models: their folders, cards and scores, and how their names find them."""

import shutil
from dataclasses import replace
from pathlib import Path
from statistics import mean

import huggingface_hub
import pytest
import torch
from helpers import ROOT

from layershuffle import create_model, load, published_models
from layershuffle.checkpoints.loading import trained_on
from layershuffle.commands.list import list_command
from layershuffle.data import Glyphs, from_config
from layershuffle.errors import UserError
from layershuffle.files import sha256
from layershuffle.published_models import MODELS, PUBLISHED, folder_of, weights_file
from layershuffle.results import Results

MOST_BYTES = 2_000_000
SIZES = {"img_size": 28, "patch_size": 7, "in_chans": 1, "embed_dim": 48, "num_heads": 3}
"""Those of the published models, which read 500 classes of glyphs."""
every = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    """An empty cache of the hub, an empty working folder, and no downloads."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("it downloads"))


@every
def test_a_folder_has_the_published_weights_and_a_card(model):
    folder = folder_of(model.name)
    assert sha256(folder / "model.safetensors") == model.sha256
    assert (folder / "model.safetensors").stat().st_size < MOST_BYTES
    card = (folder / "README.md").read_text()
    for part in (f"license: {model.license}", "Data: Glyphs", "layershuffle train ", "arbitrary", "grouped"):
        assert part in card
    # `layershuffle train NAME` trains it further.
    assert (ROOT / "configs" / "model" / f"{model.name}.yaml").is_file()


@every
def test_scores_are_those_of_the_results_file(model):
    results = Results.load(ROOT / "results" / "published" / f"{model.name}.json")
    assert results.model.sha256 == load(model.name).info.sha256

    def percent(protocol, **variant):
        scores = [score for score in results.scores if score.protocol == protocol and score.variant == variant]
        return pytest.approx(100 * mean(score.top1 for score in scores), abs=0.005)

    assert model.in_sequence == percent("sequential")
    assert model.any_order == percent("arbitrary", reading="fixed")
    assert model.half_dead == percent("failing", dead="50%")
    assert model.four_steps == percent("grouped", steps=4, layers="random")


@every
def test_a_name_is_a_model_and_the_weights_that_a_training_starts_from(model):
    loaded = load(model.name)
    assert loaded.info.name == model.name
    assert loaded.info.source == model.name
    assert trained_on(model.name) == loaded.data

    same_classes = create_model("vit_tiny_patch16_224", 500, pretrained=model.name, **SIZES)
    assert torch.equal(same_classes.vit.head.weight, loaded.model.vit.head.weight)
    other_classes = create_model("vit_tiny_patch16_224", 7, pretrained=model.name, **SIZES)
    assert len(other_classes.vit.head.weight) == 7


def test_the_model_for_any_order_reads_glyphs_in_any_order():
    loaded = load("mini_glyphs_any_width")
    data = from_config(loaded.data)
    assert isinstance(data, Glyphs)
    assert loaded.classes == data.class_names

    preprocess = data.prepare_for(*loaded.model.image_format)
    data.setup("test")
    pixels, labels = next(iter(data.loader("test", 500)))
    for order in (None, "11 10 9 8 7 6 5 4 3 2 1 0", "(0+3+6+9) (1+4+7+10) (2+5+8+11)"):
        right = loaded.model(preprocess(pixels), order).logits.argmax(dim=1) == labels
        assert right.float().mean() > 0.85


def test_list_shows_the_scores(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    list_command(["models"])
    said = " ".join(capsys.readouterr().out.split())
    for model in MODELS:
        assert f"{model.name} {model.summary} {model.in_sequence:.1f}%" in said


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """A published model that is no part of the package, and a folder as the hub has it."""
    model = replace(PUBLISHED["mini_glyphs"], name="far_away", repository="me/far-away")
    monkeypatch.setitem(PUBLISHED, "far_away", model)
    folder = tmp_path / "cache" / "models--me--far-away"
    revision = folder / "snapshots" / ("0" * 40)

    def download(repository, **_):
        assert repository == "me/far-away"
        shutil.copytree(folder_of("mini_glyphs"), revision)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        return str(revision)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return revision


def test_a_model_on_the_hub_is_downloaded_only_if_the_name_says_so(on_the_hub):
    with pytest.raises(UserError, match="the name hf-hub:me/far-away downloads it"):
        load("far_away")
    assert not on_the_hub.exists()

    downloaded = load("hf-hub:me/far-away")
    assert downloaded.info.source == "hf-hub:me/far-away"

    # From now on it is there.
    weights = load("far_away").model.state_dict()
    for name, expected in downloaded.model.state_dict().items():
        assert torch.equal(weights[name], expected)
    assert weights_file("far_away") == on_the_hub / "model.safetensors"


def test_other_weights_under_a_published_name_are_refused(on_the_hub):
    load("hf-hub:me/far-away")
    (on_the_hub / "model.safetensors").write_bytes(b"others")
    with pytest.raises(UserError, match="other weights"):
        load("far_away")


def test_a_download_without_a_network(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    for read in (load, weights_file):
        with pytest.raises(UserError, match="could not be fetched"):
            read("hf-hub:me/far-away")


def test_the_weights_of_a_folder():
    shutil.copytree(published_models.PACKAGED / "mini_glyphs", "mine")
    assert weights_file("mine") == Path("mine/model.safetensors")
    model = create_model("vit_tiny_patch16_224", 500, pretrained="mine", **SIZES)
    assert torch.equal(model.vit.head.weight, load("mine").model.vit.head.weight)

    Path("empty").mkdir()
    with pytest.raises(UserError, match="without model.safetensors"):
        weights_file("empty")

    # A file comes first: somebody may have called one as a model is called.
    Path("mini_glyphs").write_bytes(b"")
    assert weights_file("mini_glyphs") == Path("mini_glyphs")
