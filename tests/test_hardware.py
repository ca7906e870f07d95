"""Choosing precision and batch size by measuring, against clocks and memories made up for the purpose."""

from types import SimpleNamespace

import pytest
import torch
from helpers import FULL

import layershuffle
from layershuffle import hardware
from layershuffle.evaluation.device import make_fabric
from layershuffle.hardware import fastest_precision, largest_batch, memory_bandwidth

CPU = torch.device("cpu")


def set_speeds_of_bf16(monkeypatch, product, work):
    """Make a matrix product and the work take so many times as long in bfloat16 as in float32.

    Returns a list in which each piece of work is noted as its time is measured: whether it ran in bfloat16.
    """
    works = []

    def seconds(what, device):
        result = what()
        # What is measured returns a tensor if it is a matrix product, and nothing if it is the work.
        if isinstance(result, torch.Tensor):
            return product if result.dtype == torch.bfloat16 else 1.0
        in_bf16 = torch.is_autocast_enabled("cpu")
        works.append(in_bf16)
        return work if in_bf16 else 1.0

    monkeypatch.setattr(hardware, "seconds", seconds)
    return works


def test_without_bf16_instructions_the_work_is_not_even_tried(monkeypatch):
    works = set_speeds_of_bf16(monkeypatch, product=300.0, work=300.0)
    assert fastest_precision(lambda: None, CPU) == "32-true"
    assert works == []


@pytest.mark.parametrize(("bf16", "expected"), [(0.5, "bf16-mixed"), (1.6, "32-true")])
def test_the_work_decides_not_the_matrix_product(monkeypatch, bf16, expected):
    works = set_speeds_of_bf16(monkeypatch, product=0.5, work=bf16)
    assert fastest_precision(lambda: None, CPU, repeats=2) == expected
    assert works == [False, True] * 3  # once to warm up, and two repeats


def test_precision_is_measured_on_images_as_the_model_takes_them(monkeypatch):
    # This model begins with a convolutional network: its projection has 64 channels, its images have 3.
    model = layershuffle.create_model("vit_tiny_r_s16_p8_224", 5, img_size=64, depth=1)
    assert model.image_shape == (3, 64, 64)
    works = set_speeds_of_bf16(monkeypatch, product=0.5, work=0.5)
    assert make_fabric("cpu", "auto", model)._precision.precision == "bf16-mixed"
    assert len(works) == 8


@pytest.mark.parametrize(
    ("fits", "limit", "tried", "found"),
    [(100, 1000, [16, 32, 64, 128], 64), (7, 1000, [16], 8), (1000, 50, [16, 32, 64], 50), (1000, 5, [], 8)],
)
@pytest.mark.parametrize("full", FULL, ids=str)
def test_the_largest_batch_is_found_by_doubling(fits, limit, tried, found, full):
    attempts = []

    def attempt(count):
        attempts.append(count)
        if count > fits:
            raise full

    assert largest_batch(attempt, 8, limit) == found
    assert attempts == tried


def test_other_errors_are_not_taken_for_a_full_memory():
    def attempt(count):
        raise RuntimeError("CUDA error: misaligned address")

    with pytest.raises(RuntimeError, match="misaligned"):
        largest_batch(attempt, 8, 100)


@pytest.mark.parametrize(("precision", "is_told"), [("32-true", True), ("bf16-mixed", False)])
def test_an_evaluation_tells_that_float32_is_slow_on_a_gpu(monkeypatch, caplog, precision, is_told):
    fabric = SimpleNamespace(device=torch.device("cuda"), _precision=SimpleNamespace(precision=precision))
    monkeypatch.setattr("layershuffle.evaluation.device.Fabric", lambda **_: fabric)
    caplog.set_level("INFO", "layershuffle")
    make_fabric("gpu", precision, model=None)
    assert any("--precision bf16-mixed" in text for text in caplog.messages) == is_told


@pytest.mark.parametrize(
    ("kilohertz", "bits", "expected"),
    [(2_619_000, 5120, 3.35e12), (1_215_000, 5120, 1.555e12), (10_501_000, 384, 1.008e12), (0, 0, 0)],
    ids=["H100", "A100", "RTX 4090", "unknown"],
)
def test_the_bandwidth_is_that_of_the_data_sheet(monkeypatch, kilohertz, bits, expected):
    properties = SimpleNamespace(memory_clock_rate=kilohertz, memory_bus_width=bits)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    assert memory_bandwidth(torch.device("cuda")) == pytest.approx(expected, rel=2e-3)
