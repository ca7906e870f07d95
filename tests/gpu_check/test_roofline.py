"""The roofline counts what the model really computes, and the page shows what it prints."""

import pytest
import torch
from helpers import ROOT
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import roofline as page
from layershuffle.gpu_check import roofline
from layershuffle.gpu_check.roofline import CAUTIOUS, LIKELY, LIMIT, Gpu, Kernel, Shape
from layershuffle.models import create_model

SMALL = Shape(batch=3, tokens=17, width=48, hidden=144, depth=2, patches=16, patch_values=192, classes=5)


@pytest.fixture(scope="module")
def small_model():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 2, "mlp_ratio": 3}
    return create_model("vit_tiny_patch16_224", SMALL.classes, **sizes)


def flops(kernels):
    """The floating-point operations of kernels in one step."""
    return sum(kernel.times * kernel.flops for kernel in kernels)


def test_flops_are_those_of_the_model(small_model):
    images = torch.randn(SMALL.batch, 3, 32, 32)
    labels = torch.zeros(SMALL.batch, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        logits = small_model(images).logits
    with FlopCounterMode(display=False) as backward:
        F.cross_entropy(logits, labels).backward()

    assert flops(roofline.forward_kernels(SMALL)) == forward.get_total_flops()
    assert flops(roofline.step_kernels(SMALL)) == forward.get_total_flops() + backward.get_total_flops()


def test_parameters_are_those_of_the_model(small_model):
    assert SMALL.parameters == sum(parameter.numel() for parameter in small_model.parameters())


def test_a_kernel_takes_as_long_as_its_arithmetic_or_its_bytes():
    gpu = Gpu(flops=100.0, bandwidth=10.0)
    product = Kernel(roofline.PRODUCTS, "forward", bytes=20.0, flops=400.0)
    assert roofline.seconds(product, gpu, LIMIT) == 400 / 100
    ten_times_the_arithmetic = Gpu(flops=1000.0, bandwidth=10.0)
    assert roofline.seconds(product, ten_times_the_arithmetic, LIMIT) == 20 / 10

    # Likely, memory gives 87.5% of its bandwidth, and each of the three launches adds a microsecond.
    norms = Kernel(roofline.NORMS, "forward", bytes=20.0, launches=3, times=5)
    assert roofline.seconds(norms, gpu, LIMIT) == 5 * 20 / 10
    assert roofline.seconds(norms, gpu, LIKELY) == pytest.approx(5 * (2 / 0.875 + 3e-6))


@pytest.mark.parametrize("gpu", page.GPUS)
def test_the_limit_is_above_what_is_likely_and_that_above_what_is_cautious(gpu):
    kernels = roofline.step_kernels(Shape())

    def share(case):
        return roofline.estimate(kernels, 128, page.GPUS[gpu], case).share

    assert share(LIMIT) >= share(LIKELY) >= share(CAUTIOUS)


def test_every_kind_of_kernel_has_a_row():
    assert {kernel.kind for kernel in roofline.step_kernels(Shape())} == set(roofline.KINDS)


def test_the_results_have_what_the_benchmark_prints(capsys):
    page.main()
    text = (ROOT / "results/performance/roofline.md").read_text()
    for line in capsys.readouterr().out.splitlines():
        assert line in text
