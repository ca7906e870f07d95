"""Quantized ONNX programs, against the model that they were exported from."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers import DIGITS, QUIET, fails, hide_package, train

import layershuffle
from layershuffle.api import quantized_export
from layershuffle.api.quantized_export import _with_all_layers
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.program_export import export_programs
from layershuffle.checkpoints.programs import Programs
from layershuffle.checkpoints.quantize import halve_weights, to_int8
from layershuffle.checkpoints.quantized import Quantized
from layershuffle.commands.export import export_command
from layershuffle.commands.predict import predict_command
from layershuffle.data import Digits, Preprocess
from layershuffle.orders.order import Order, sequential
from layershuffle.results import ModelInfo

PIXELS = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def three_layers(tmp_path_factory):
    """The checkpoint of a three-layer model of the digits, trained with shuffled layers: each layer is a program."""
    folder = tmp_path_factory.mktemp("three_layers")
    options = ["--model.timm_args.depth=3", "--model.sampler=Shuffle", "--trainer.max_epochs=3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train([*DIGITS, *QUIET, *options, "--trainer.logger=false", f"--checkpoint.dirpath={folder}"])
    return str(folder / "best.ckpt")


def integers(path):
    """The weights of a program that are 8-bit integers, and how many there are of other kinds."""
    weights = [onnx.numpy_helper.to_array(weight) for weight in onnx.load(path).graph.initializer]
    return [values for values in weights if values.dtype == np.int8 and values.ndim == 2]


def test_halves_and_integers_give_nearly_the_same_logits(small, tmp_path):
    model = small(position="encode")
    loaded = LoadedModel(model, ModelInfo(name="small", source="here", config=model.config))
    export_programs(loaded, tmp_path / "out", "onnx", order=Order("2 0"))
    path = tmp_path / "out/model.onnx"
    whole = path.read_bytes()
    # No line of Python, and so no path of this machine, is in the file.
    assert b".py" not in whole
    with torch.inference_mode():
        expected = model(Preprocess(*model.image_format)(PIXELS), "2 0").logits
    root = list(logging.getLogger().handlers)
    for quantize, share, tolerance in [
        (lambda: halve_weights(tmp_path / "whole.onnx", path), 0.7, 0.002),
        (lambda: to_int8(tmp_path / "whole.onnx", path), 0.6, 0.05),
        (lambda: to_int8(tmp_path / "whole.onnx", path, [(PIXELS.numpy(),)]), 0.6, 0.05),
    ]:
        (tmp_path / "whole.onnx").write_bytes(whole)
        quantize()
        assert path.stat().st_size < share * len(whole)
        found = Programs(tmp_path / "out")(PIXELS)
        assert found.dtype == torch.float32
        assert 0 < (found - expected).abs().max() < tolerance * expected.abs().max()
    # Products of 8 bits would overflow on some processors: the largest weight has 7.
    assert len(integers(path)) > 1
    assert max(np.abs(values).max() for values in integers(path)) == 64
    assert logging.getLogger().handlers == root


def test_a_program_in_several_files_is_refused(tmp_path):
    (tmp_path / "model.onnx.data").touch()
    for quantize in (halve_weights, to_int8):
        with pytest.raises(ValueError, match="more than 1.5 GB can't be quantized in one piece: add --per_layer"):
            quantize(tmp_path / "model.onnx", tmp_path / "out.onnx")


def test_times_of_all_sizes_are_readable():
    quantized = Quantized("int8", 0, 343_330_000, 88_950_000, 2104.4, 0.5384, "a CPU", "8 images", ())
    assert quantized.gain == "343.33 MB before, 88.95 after; 2,104 ms / image before, 0.538 after"
    assert "| ms / image | 2,104 | 0.538 |" in quantized.markdown()


def test_layers_that_the_base_order_leaves_out_are_calibrated_too():
    compared = [Order("2 0"), Order("0 2")]
    assert _with_all_layers(compared, 4) == [sequential(4), *compared]
    compared = [Order("2 0"), Order("1 2")]
    assert _with_all_layers(compared, 3) == compared


@pytest.mark.heavy
def test_layers_in_any_order(three_layers, elsewhere, monkeypatch, capsys):
    options = ["--format=onnx", "--per_layer", "--quantize=int8", "--calibrate=40", "--check_images=60"]
    exported = export_command([three_layers, "out", *options])
    said = capsys.readouterr().out
    assert "quantized: int8, calibrated on 40 training images\n" in said
    assert "checked: on 60 test images of Digits\n  base order: top-1 " in said
    quantized = exported.quantized
    assert [one.orders for one in quantized.agreements] == ["base order", "3 random orders"]
    assert min(one.agreement for one in quantized.agreements) > 0.9
    assert quantized.bytes < 0.6 * quantized.original_bytes
    assert quantized.bytes == sum(path.stat().st_size for path in Path("out").glob("*.onnx"))
    assert sorted(path.name for path in Path("out").iterdir() if path.suffix != ".onnx") == [
        "README.md",
        "manifest.json",
    ]
    assert json.loads(Path("out/manifest.json").read_text())["quantized"] == json.loads(json.dumps(quantized.to_json()))

    # The figures are those of the program, which the card shows how to run without this package.
    data = Digits(test_images=60)
    data.setup("test")
    images, labels = next(iter(data.loader("test", 60)))
    card = Path("out/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    with monkeypatch.context() as patch:
        hide_package(patch)
        exec(code.replace("FOLDER", "out"), names := {"images": images})
    programs = Programs("out")
    torch.testing.assert_close(torch.from_numpy(names["logits"]), programs(images, "2 1 0"), rtol=0, atol=1e-5)
    base = quantized.agreements[0]
    assert (programs(images).argmax(1) == labels).float().mean() == pytest.approx(base.top1, abs=1e-6)
    assert f"| top-1, base order | {base.original_top1:.1%} | {base.top1:.1%} | {base.agreement:.1%} |" in card

    # Commands that need a model say what the folder is.
    complaint = fails(capsys, predict_command, "out", "images")
    assert "out holds programs, which have no layers to change: its README.md says how to run them" in complaint


def test_a_program_that_loses_too_much_is_not_kept(shuffled_digits, elsewhere, monkeypatch):
    def spoil(source, target, calibration):
        model = onnx.load(source)
        for weight in model.graph.initializer:
            if weight.name.endswith("norm.bias"):
                values = np.arange(np.prod(weight.dims), dtype=np.float32) % 7
                weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, target)

    monkeypatch.setattr(quantized_export, "to_int8", spoil)
    quantization = layershuffle.Quantization("int8", check_images=20)
    message = (
        r"the int8 program loses too much, so it was not kept: its order: top-1 \d+\.0% before, \d+\.0% after, "
        r"agreement \d+\.0% \(limits: max_loss 0.02, min_agreement 0.9\)"
    )
    with pytest.raises(layershuffle.UserError, match=message):
        layershuffle.export(shuffled_digits, "new", order="1", format="onnx", quantize=quantization)
    assert not Path("new").exists()
    lenient = layershuffle.Quantization("int8", check_images=20, max_loss=1, min_agreement=0)
    assert layershuffle.export(shuffled_digits, "new", order="1", format="onnx", quantize=lenient).quantized


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--quantize=int8"], "only ONNX programs can be quantized, not the format timm"),
        (
            ["--format=torch-export", "--quantize=fp16"],
            "only ONNX programs can be quantized, not the format torch-export",
        ),
        (["--format=onnx", "--quantize=fp16", "--calibrate=9"], "fp16 has no ranges to calibrate"),
        (["--format=onnx", "--quantize=int8", "--calibrate=0"], "calibrate can't be 0"),
        (["--format=onnx", "--quantize=int8", "--max_loss=2"], "max_loss can't be 2.0: give a share from 0 to 1"),
        (["--format=onnx", "--calibrate=9"], "--calibrate is for quantized programs: add --quantize int8"),
        (["--format=onnx", "--quantize=int4"], "int4"),
    ],
)
def test_what_cannot_be_asked_for(shuffled_digits, elsewhere, capsys, options, complaint):
    assert complaint in fails(capsys, export_command, shuffled_digits, "new", *options)
    assert not Path("new").exists()
