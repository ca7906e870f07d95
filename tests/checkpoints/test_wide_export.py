"""Exports of orders with groups, whose layers are merged, in all formats."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from helpers import hide_package, read_programs_once
from packaging.version import Version

import layershuffle
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.loading import load, trained_on
from layershuffle.checkpoints.program_export import export_programs
from layershuffle.checkpoints.programs import Programs
from layershuffle.checkpoints.wide_export import export_wide, what_is_merged
from layershuffle.commands.export import export_command
from layershuffle.data import Preprocess
from layershuffle.orders.order import Order
from layershuffle.results import ModelInfo

ORDER = Order("(0a+1a+2a) (0f+1f+2f) (1+3) 3 0a")
PIXELS = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def loaded(model):
    """A model as it is when it was loaded from a file."""
    return LoadedModel(model, ModelInfo(name="small", source="here", config=model.config))


def code_of_the_card(folder):
    """The code with which the model card of an export runs the model, for images in a variable ``images``."""
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code.replace("FOLDER", str(folder))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"choices": ["sequential", "2 1"]}),
        ("deit_tiny_distilled_patch16_224", {"head": "class"}),
        ("vit_small_patch16_rope_mixed_224", {"position": "predict", "positions": 12}),
    ],
)
def test_the_card_says_how_a_wide_model_runs_without_this_package(small, images, tmp_path, name, arguments):
    model = small(name, **arguments)
    with torch.inference_mode():
        expected = model(images, ORDER).logits

    export_wide(loaded(model), tmp_path / "out", ORDER)

    variables = {"images": images}
    code = code_of_the_card(Path("out"))
    with pytest.MonkeyPatch.context() as patch:
        hide_package(patch)
        exec(code, variables)
    torch.testing.assert_close(variables["logits"].detach(), expected, rtol=0, atol=1e-5)
    for file in Path("out").iterdir():
        assert file.stat().st_mode & 0o777 == 0o644  # others may read them

    with pytest.raises(ValueError, match=r"out are merged and run in one order only: its README\.md says"):
        load("out")


@pytest.mark.slow
def test_the_code_of_the_card_runs_in_a_new_process(small, images):
    model = small()
    export_wide(loaded(model), Path("out"), ORDER)
    torch.save(images, "images.pt")
    program = [
        "import torch",
        "images = torch.load('images.pt')",
        code_of_the_card(Path("out")),
        "torch.save(logits.detach(), 'logits.pt')",
        "assert 'layershuffle' not in sys.modules",
    ]
    Path("card.py").write_text("\n".join(program))

    # Python finds no folder of this package: -P leaves out that of the script, and the environment has no PYTHONPATH.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-P", "card.py"], env=environment, check=True)

    with torch.inference_mode():
        torch.testing.assert_close(torch.load("logits.pt"), model(images, ORDER).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("form", ["torch-export", pytest.param("onnx", marks=pytest.mark.slow)])
def test_programs_are_merged_too(small, tmp_path, monkeypatch, form):
    read_programs_once(monkeypatch)
    model = small()
    with torch.inference_mode():
        expected = model(Preprocess(*model.image_format)(PIXELS), ORDER).logits

    export_programs(loaded(model), tmp_path / "out", form, order=ORDER)

    programs = Programs(tmp_path / "out")
    for count in (3, 1):
        torch.testing.assert_close(programs(PIXELS[:count]), expected[:count], rtol=0, atol=1e-5)
    assert programs.manifest["order"] == str(ORDER)
    if form == "torch-export":
        weights = torch.export.load(tmp_path / "out" / "model.pt2").state_dict
        # The queries, keys and values of three layers of 32 features.
        assert weights["vit.blocks.0.steps.0.0.qkv.weight"].shape == (3 * 3 * 32, 32)


def test_the_command_merges_groups_and_says_so(shuffled_digits, capsys):
    order = "(0a+1a+2a) (0f+1f+2f) 3 4"
    layershuffle.evaluate(shuffled_digits, orders=[order]).save("results.json")

    export_command([shuffled_digits, "out", "--order", order, "--results=results.json", "--license=mit"])
    said = capsys.readouterr().out
    assert "one wide layer: 5 attentions as 3, 5 feed-forward networks as 3\n" in said
    assert "exported to out: out/README.md says how wide_vit.py runs it" in said
    card = Path("out/README.md").read_text()
    assert f"| given, {order} | 1 |" in card
    assert "5 attentions as 3" in card
    assert json.loads(Path("out/config.json").read_text())["pretrained_cfg"]["license"] == "mit"
    assert trained_on("out") == trained_on(shuffled_digits)
    if Version(timm.__version__) >= Version("1.0.31"):
        with pytest.raises(RuntimeError, match=r"its layers are merged; use wide_vit\.py in its folder"):
            timm.create_model("local-dir:out", pretrained=True)

    export_command([shuffled_digits, "program", "--order", order, "--format=torch-export"])
    assert "one wide layer: 5 attentions as 3, 5 feed-forward networks as 3\n" in capsys.readouterr().out


def test_what_is_not_merged_says_why(shuffled_digits, capsys):
    order = "1 2<1 (3a+4a)"
    with pytest.raises(ValueError, match=r"the step 2<1 reads an older state .* a program"):
        export_command([shuffled_digits, "out", "--order", order])
    assert not Path("out").exists()

    export_command([shuffled_digits, "out", "--order", order, "--format=torch-export"])
    assert "\nnot merged, " in capsys.readouterr().out

    # Without groups there is nothing to say.
    export_command([shuffled_digits, "plain", "--order", "4", "--format=torch-export"])
    assert "merged" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ("(0a+1a+2a) (0f+1f+2f)", "3 attentions as 1, 3 feed-forward networks as 1"),
        ("(0+1) 2", "1 attentions as 1, 1 feed-forward networks as 1, 2 whole layers as 1"),
    ],
)
def test_what_is_merged_is_counted(order, text):
    assert what_is_merged(Order(order)) == text
