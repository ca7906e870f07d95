"""Programs for torch.export, ONNX and AOTInductor, against the model that they were exported from."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from helpers import SMALL, read_programs_once, train

from layershuffle import Order
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.program_export import export_programs
from layershuffle.checkpoints.programs import Programs
from layershuffle.commands.export import export_command
from layershuffle.data import Preprocess
from layershuffle.results import ModelInfo

PIXELS = torch.randint(256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
VIT = "vit_tiny_patch16_224"
DISTILLED = "deit_tiny_distilled_patch16_224"
ROTARY = "vit_small_patch16_rope_mixed_224"


@pytest.fixture(autouse=True)
def read_once(monkeypatch):
    read_programs_once(monkeypatch)


def loaded(model):
    """A model as it is when it was loaded from a file."""
    return LoadedModel(model, ModelInfo(name="small", source="here", config=model.config))


def logits(model, order):
    """The logits that a program for an order must give for PIXELS."""
    with torch.inference_mode():
        return model(Preprocess(*model.image_format)(PIXELS), order).logits


def logits_of_the_card(folder):
    """The logits that the code of the model card gives for PIXELS."""
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    variables = {"images": PIXELS}
    exec(code.replace("FOLDER", str(folder)), variables)
    return torch.as_tensor(variables["logits"])


@pytest.mark.parametrize(
    ("form", "name", "arguments"),
    [
        ("torch-export", VIT, {"position": "encode", "positions": 6}),
        pytest.param("torch-export", VIT, {"position": "predict", "positions": 6}, marks=pytest.mark.slow),
        pytest.param("torch-export", DISTILLED, {"head": "class"}, marks=pytest.mark.slow),
        ("torch-export", DISTILLED, {"head": "average"}),
        pytest.param("torch-export", ROTARY, {"choices": ["sequential", "2 1"]}, marks=pytest.mark.slow),
        ("onnx", VIT, {"position": "encode", "positions": 6}),
        pytest.param("onnx", DISTILLED, {"head": "class"}, marks=pytest.mark.slow),
    ],
)
def test_a_program_runs_one_order_of_any_kind(small, tmp_path, form, name, arguments):
    model = small(name, **arguments)
    order = Order("(1a|2f) (1+3) 2<2")
    expected = logits(model, order)

    export_programs(loaded(model), tmp_path / "out", form, order=order)

    programs = Programs(tmp_path / "out")
    for count in (3, 1):  # a program takes batches of any size
        torch.testing.assert_close(programs(PIXELS[:count]), expected[:count], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_of_the_card(tmp_path / "out"), expected, rtol=0, atol=1e-5)
    assert programs.manifest["record"]["cut"] == str(order)
    with pytest.raises(ValueError, match=r"out runs one order only: \(1a\|2f\) \(1\+3\) 2<2"):
        programs(PIXELS, "3 1")

    # The file has no weights of layer 0, which doesn't run.
    if form == "torch-export":
        weights = torch.export.load(tmp_path / "out" / "model.pt2").state_dict
        layers = {int(layer) for layer in re.findall(r"blocks\.(\d)\.", " ".join(weights))}
        assert layers == {1, 2, 3}


@pytest.mark.parametrize(
    ("form", "name", "position"),
    [("onnx", VIT, "encode"), ("torch-export", ROTARY, "none")],
)
def test_layers_in_files_of_their_own_run_in_any_order(small, tmp_path, form, name, position):
    model = small(name, position=position, positions=3, depth=2)
    export_programs(loaded(model), tmp_path / "out", form, normalises=False)

    programs = Programs(tmp_path / "out")
    normalised = Preprocess(*model.image_format)(PIXELS)
    for order in ("1 0 1", "1 (0|1) 0", "1", "0 (0+1)", "0 1<1 0<1"):
        torch.testing.assert_close(programs(normalised, order), logits(model, order), rtol=0, atol=1e-5)
    torch.testing.assert_close(programs(normalised), logits(model, "0 1"), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="has whole layers only, and '0a 1' runs halves"):
        programs(normalised, "0a 1")

    (tmp_path / "out" / programs.manifest["files"]["layers"][1]).unlink()
    with pytest.raises(ValueError, match=r"there is no file .*layer1.*, which manifest\.json names"):
        Programs(tmp_path / "out")


@pytest.mark.slow
def test_a_compiled_program(small, tmp_path):
    model = small(position="encode")
    expected = logits(model, "2")

    export_programs(loaded(model), tmp_path / "out", "aoti", order=Order("2"))

    for count in (3, 1):
        found = Programs(tmp_path / "out")(PIXELS[:count])
        torch.testing.assert_close(found, expected[:count], rtol=0, atol=1e-5)
    torch.testing.assert_close(logits_of_the_card(tmp_path / "out"), expected, rtol=0, atol=1e-5)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    timm_args = json.dumps(SMALL | {"depth": 2})
    train(
        [
            f"--model.name={VIT}",
            f"--model.timm_args={timm_args}",
            "--model.choices=[sequential, 1 0]",
            "--model.objective=InstanceWise",
            "--data=Digits",
            "--data.train_images=100",
            "--trainer.max_steps=1",
            "--trainer.accelerator=cpu",
            "--trainer.enable_progress_bar=false",
            "--checkpoint.dirpath=.",
        ]
    )

    # One order, for images that are normalised before the program.
    export_command(["best.ckpt", "out", "--format=torch-export", "--order=1 0", "--normalise=beside"])
    said = capsys.readouterr().out
    assert "checked: on 8 test images of Digits its logits differ from the original's by at most" in said
    assert "exported to out: out/README.md says how to run it" in said
    assert Programs(Path("out")).manifest["classes"] == list("0123456789")
    card = Path("out/README.md").read_text()
    assert "Images: grey in 0..1, minus mean (0.5), divided by standard deviation (0.5)" in card
    assert "FOLDER stands for" in card

    # A program for each layer, the first of which gets images that are not normalised.
    export_command(["best.ckpt", "split", "--format=torch-export", "--per_layer"])
    assert len(list((tmp_path / "split").glob("*.pt2"))) == 2 + 2  # two layers, what is before them and what is after
    assert "Images: grey, 8 x 8 pixels" in Path("split/README.md").read_text()

    for options, complaint in [
        (["--format=onnx"], "each image chooses its order"),
        (["--per_layer"], "programs of single layers run any order"),
        (["--per_layer", "--format=onnx", "--order=1"], "programs of single layers run any order"),
        (["--order=0 1<1"], "reads an older state"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            export_command(["best.ckpt", "new", *options])
        assert not (tmp_path / "new").exists()

    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ValueError, match=r"needs onnxscript: pip install 'layershuffle\[onnx\]'"):
        export_command(["best.ckpt", "new", "--format=onnx", "--order=1"])
