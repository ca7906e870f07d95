"""The measure, the command and the recipe that docs/guides/extend.md shows, as they are printed there."""

import importlib
import sys

import pytest
import torch
from helpers import DIGITS, QUIET, configs, train
from test_own_sampler_and_protocol import write_files

from layershuffle import commands
from layershuffle.api.compose import compose
from layershuffle.checkpoints.loading import load
from layershuffle.errors import UserError
from layershuffle.results import MEASURES, Results

FEW = ["--model.depth=3", "--data.train_images=80", "--data.test_images=20", "--trainer.max_steps=1"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A working folder with the page's files, whose command is one of the package's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for heading in ("Add a measure", "Add a command", "Add a recipe"):
        write_files(heading)
    monkeypatch.setitem(commands.COMMANDS, "token-norms", "measure the norms of the tokens")
    monkeypatch.setitem(sys.modules, "layershuffle.commands.token_norms", importlib.import_module("token_norms"))
    yield
    MEASURES.pop("token_norms", None)
    for module in ("my_measures", "token_norms"):
        sys.modules.pop(module, None)


@pytest.fixture
def checkpoint():
    train([*DIGITS, *QUIET, *FEW, *configs("method/baseline")])
    return "runs/version_0/checkpoints/last.ckpt"


def test_a_command_measures_saves_and_draws(checkpoint, capsys):
    commands.main(["token-norms", checkpoint])
    printed = capsys.readouterr().out
    results = Results.load("runs/version_0/checkpoints/last.token_norms.json")
    assert "last.token_norms.json" in printed
    assert "last.token_norms.png" in printed

    # Without shuffling, the norms are those of the model's own forward pass.
    from my_measures import start_study

    loaded = load(checkpoint)
    expected = []
    for block in loaded.model.vit.blocks:
        block.register_forward_hook(lambda _, inputs, output: expected.append(float(output.norm(dim=-1).mean())))
    study = start_study(loaded, None, split="test", accelerator="cpu")
    with torch.inference_mode():
        loaded.model(study.first_batch())
    assert results.measures[0].norms == pytest.approx(expected, rel=1e-5)


def test_a_results_file_with_a_wrong_norm_is_refused(checkpoint, tmp_path):
    from my_measures import TokenNorms, token_norms

    results = token_norms(checkpoint)
    results.save("right.json")
    assert Results.load("right.json").measures == results.measures

    text = (tmp_path / "right.json").read_text()
    first_norm = str(results.measure(TokenNorms).norms[0])
    (tmp_path / "wrong.json").write_text(text.replace(first_norm, "-1.0"))
    with pytest.raises(UserError, match="token_norms"):
        Results.load("wrong.json")


def test_a_recipe_is_a_config():
    run = compose([*DIGITS, "--config=configs/recipe/gentle.yaml", *FEW])
    assert run.model.schedule.shape == "cosine"
    assert run.model.schedule.warmup_steps == 0.05
    assert run.model.objective.label_smoothing == 0.1
