"""timm's models as they are, with weights of one's own or random ones; no network; faults in the user's own code."""

import sys

import pytest
import timm
import torch
from helpers import fails, train
from PIL import Image

from layershuffle.checkpoints.loading import load
from layershuffle.commands.errors import run
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.models import create_model
from layershuffle.results import Results

NAME = "vit_tiny_patch16_224"
TASK = ["--data=ImageFolders", "--data.root=pets", "--protocols=sequential", "--accelerator=cpu"]


@pytest.fixture(autouse=True)
def pets(tmp_path, monkeypatch):
    """A folder with three classes of one picture each."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val"):
        for name in ("cat", "cow", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / "pets" / split / name / "1.png")


def test_weights_with_classes_of_their_own_and_random_ones_are_evaluated(capsys):
    torch.save(timm.create_model(NAME, num_classes=3).state_dict(), "three.pth")
    results = evaluate_command([NAME, *TASK, "--pretrained=three.pth"])
    assert results.model.num_classes == 3

    # Random weights are the same every time.
    random = [NAME, *TASK, "--pretrained=random", "--output=r.json"]
    first = evaluate_command(random)
    second = evaluate_command(random)
    assert first.model.source == "random weights"
    assert first.scores == second.scores
    assert Results.load("r.json").scores == first.scores

    torch.save(timm.create_model(NAME, num_classes=0).state_dict(), "headless.pth")
    with pytest.raises(ValueError, match="headless.pth .*classifier"):
        load(NAME, "headless.pth")


def test_only_results_are_overwritten(tmp_path, capsys):
    (tmp_path / "thesis.json").write_text("[1]")
    said = fails(capsys, evaluate_command, NAME, *TASK, "--pretrained=random", "--output=thesis.json")
    assert "thesis.json" in said
    assert (tmp_path / "thesis.json").read_text() == "[1]"


def test_without_a_network_there_is_one_request(monkeypatch):
    import huggingface_hub

    requests = []

    def refuse(url, **options):
        requests.append(url)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("it asks again"))
    with pytest.raises(ValueError, match=f"weights of {NAME}"):
        create_model(NAME, 10, pretrained=True)
    assert len(requests) == 1


def test_weights_in_the_cache_need_no_network(tmp_path, monkeypatch):
    import huggingface_hub
    from safetensors.torch import save_file

    weights = timm.create_model(NAME).state_dict()
    save_file(weights, tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(tmp_path / "model.safetensors"))
    model = create_model(NAME, 1000, pretrained=True)
    assert all(torch.equal(value, weights[name]) for name, value in model.vit.state_dict().items())
    assert create_model(NAME, 7, pretrained=True, depth=2).depth == 2


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (
            "    num_classes = 2\n    def load(self, train):\n        return [][1]",
            "line 6, failed: IndexError: list",
        ),
        ("    pass", "num_classes"),
    ],
)
def test_faults_in_ones_own_data_set_are_shown_alone(tmp_path, monkeypatch, capsys, body, complaint):
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    module = f"mine{len(body)}"  # each case has a module of its own, since Python imports a name only once
    code = f"from layershuffle.data import ImageData\n\nclass Mine(ImageData):\n{body}\n"
    (tmp_path / f"{module}.py").write_text(code)
    with pytest.raises(SystemExit) as stop:
        run(lambda: train(["mini_digits", "cpu", f"--data={module}.Mine"]))
    assert complaint in str(stop.value.code)
    assert capsys.readouterr().err.count("site-packages") == 0
