"""The kernels that the roofline counts are those that torch.compile makes of a layer for a Hopper GPU."""

import json
from collections import Counter

import pytest
from fake_gpu import library

from layershuffle.gpu_check import roofline
from layershuffle.gpu_check.roofline import Shape

pytestmark = [pytest.mark.heavy, pytest.mark.skipif(bool(library.why_not()), reason=str(library.why_not()))]

KINDS = {
    "product in bfloat16": roofline.PRODUCTS,
    "pytorch_flash": roofline.ATTENTION,
    "layer_norm": roofline.NORMS,
    # The end of the sums for the norms' parameters, and the last residual.
    "reduce_kernel": roofline.NORMS,
    "view_add": roofline.NORMS,
    # The sums for the biases have the names of what comes before them as well.
    "sum": roofline.BIASES,
    "gelu": roofline.GELU,
    "stack": roofline.STACK,
    "to_copy": roofline.CASTS,
}
"""The kind of a kernel, by the first of these that is part of its name."""


def kind_of(name):
    return next((kind for part, kind in KINDS.items() if part in name), name)


@pytest.mark.slow
def test_the_roofline_counts_the_kernels_of_a_compiled_layer(tmp_path):
    lines = library.run("compiled_layer", folder=tmp_path).splitlines()
    names = json.loads(lines[-1])
    expected = {"forward": Counter(), "backward": Counter()}
    for kernel in roofline.step_kernels(Shape(depth=1)):
        if kernel.kind not in (roofline.AROUND, roofline.ADAM):
            expected[kernel.when][kernel.kind] += kernel.launches
    for when, counts in expected.items():
        assert Counter(map(kind_of, names[when])) == counts
