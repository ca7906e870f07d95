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


def integer_matrices(path):
    """The weight matrices of a program that are 8-bit integers."""
    weights = [onnx.numpy_helper.to_array(weight) for weight in onnx.load(path).graph.initializer]
    return [values for values in weights if values.dtype == np.int8 and values.ndim == 2]


def test_halves_and_integers_give_nearly_the_same_logits(small, tmp_path):
    model = small(position="encode")
    loaded = LoadedModel(model, ModelInfo(name="small", source="here", config=model.config))
    export_programs(loaded, tmp_path / "out", "onnx", order=Order("2 0"))
    program = tmp_path / "out/model.onnx"
    whole = tmp_path / "whole.onnx"
    content = program.read_bytes()
    whole.write_bytes(content)
    # No line of Python, and so no path of this machine, is in the file.
    assert b".py" not in content
    with torch.inference_mode():
        expected = model(Preprocess(*model.image_format)(PIXELS), "2 0").logits
    handlers = list(logging.getLogger().handlers)

    calibration = [(PIXELS.numpy(),)]
    for quantize, largest_share, tolerance in [
        (lambda: halve_weights(whole, program), 0.7, 0.002),
        (lambda: to_int8(whole, program), 0.6, 0.05),
        (lambda: to_int8(whole, program, calibration), 0.6, 0.05),
    ]:
        quantize()
        assert program.stat().st_size < largest_share * len(content)
        logits = Programs(tmp_path / "out")(PIXELS)
        assert logits.dtype == torch.float32
        assert 0 < (logits - expected).abs().max() < tolerance * expected.abs().max()

    # Products of 8 bits would overflow on some processors, so weights have 7 bits: from -64 to 63.
    matrices = integer_matrices(program)
    assert len(matrices) > 1
    assert max(np.abs(values).max() for values in matrices) == 64

    # ONNX Runtime writes to the root logger, for which Python would add a handler that stays.
    assert logging.getLogger().handlers == handlers


def test_a_program_in_several_files_is_refused(tmp_path):
    (tmp_path / "model.onnx.data").touch()
    for quantize in (halve_weights, to_int8):
        with pytest.raises(ValueError, match="more than 1.5 GB can't be quantized in one piece: add --per_layer"):
            quantize(tmp_path / "model.onnx", tmp_path / "out.onnx")


def test_times_of_all_sizes_are_readable():
    quantized = Quantized(
        "int8",
        calibrated_on=0,
        original_bytes=343_330_000,
        bytes=88_950_000,
        original_milliseconds=2104.4,
        milliseconds=0.5384,
        device="a CPU",
        compared_on="8 images",
        agreements=(),
    )
    assert quantized.gain == "343.33 MB before, 88.95 after; 2,104 ms / image before, 0.538 after"
    assert "| ms / image | 2,104 | 0.538 |" in quantized.markdown()


def test_layers_that_the_base_order_leaves_out_are_calibrated_too():
    without_layers_1_and_3 = [Order("2 0"), Order("0 2")]
    assert _with_all_layers(without_layers_1_and_3, 4) == [sequential(4), *without_layers_1_and_3]

    with_all_layers = [Order("2 0"), Order("1 2")]
    assert _with_all_layers(with_all_layers, 3) == with_all_layers


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
    other_files = sorted(path.name for path in Path("out").iterdir() if path.suffix != ".onnx")
    assert other_files == ["README.md", "manifest.json"]
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert manifest["quantized"] == json.loads(json.dumps(quantized.to_json()))  # tuples become lists

    # The figures are those of the program, which the card shows how to run without this package.
    data = Digits(test_images=60)
    data.setup("test")
    images, labels = next(iter(data.loader("test", 60)))
    card = Path("out/README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    variables = {"images": images}
    with monkeypatch.context() as patch:
        hide_package(patch)
        exec(code.replace("FOLDER", "out"), variables)
    programs = Programs("out")
    torch.testing.assert_close(torch.from_numpy(variables["logits"]), programs(images, "2 1 0"), rtol=0, atol=1e-5)
    base = quantized.agreements[0]
    accuracy = (programs(images).argmax(1) == labels).float().mean()
    assert accuracy == pytest.approx(base.top1, abs=1e-6)
    assert f"| top-1, base order | {base.original_top1:.1%} | {base.top1:.1%} | {base.agreement:.1%} |" in card

    # Commands that need a model say what the folder is.
    complaint = fails(capsys, predict_command, "out", "images")
    assert "out holds programs, which have no layers to change: its README.md says how to run them" in complaint


def test_a_program_that_loses_too_much_is_not_kept(shuffled_digits, elsewhere, monkeypatch):
    def spoil(source, target, calibration):
        """Change the biases of the last norm, instead of quantizing."""
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
