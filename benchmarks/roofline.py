"""Prints how fast an H100 and an H200 can train and run ViT-B/16. It needs no GPU.

results/performance/roofline.md has what it prints.

    python -m benchmarks.roofline

``layershuffle/gpu_check/roofline.py`` has the kernels and what they cost.
"""

from collections.abc import Iterable
from dataclasses import replace

from layershuffle.gpu_check import roofline
from layershuffle.gpu_check.roofline import CAUTIOUS, LIKELY, LIMIT, Case, Estimate, Gpu, Kernel, Shape
from layershuffle.results import tables

GPUS = {"H100": Gpu(flops=790e12, bandwidth=3.35e12), "H200": Gpu(flops=790e12, bandwidth=4.8e12)}
"""The bandwidth of the data sheets, and what matrix products reach: 80% of the 989 TFLOP/s there."""
CASES = {"limit": LIMIT, "likely": LIKELY, "cautious": CAUTIOUS}
COLUMNS = [(gpu, case) for gpu in GPUS for case in CASES]


def table(shape: Shape) -> list[list[str]]:
    """The header and the rows of the table: the time of each kind of kernel, and what follows."""
    names = [f"{gpu}: {case}" for gpu, case in COLUMNS]
    rows = [["kernels", "count", "limited by", "TFLOP", "GB", *names]]
    kernels = roofline.step_kernels(shape)
    for kind in roofline.KINDS:
        of_kind = [kernel for kernel in kernels if kernel.kind == kind]
        rows.append(_row(kind, of_kind, _limit_of(of_kind)))
    forward = roofline.forward_kernels(shape)
    rows.append(_row("a training step", kernels))
    rows.append(_row("a forward pass", forward))

    for name, part in {"training": kernels, "forward": forward}.items():
        estimates = [_estimate(part, shape, GPUS[gpu], CASES[case]) for gpu, case in COLUMNS]
        speeds = [f"{estimate.images_per_second:,.0f}" for estimate in estimates]
        shares = [f"{estimate.share:.0%}" for estimate in estimates]
        rows.append([f"{name}, images/s", "", "", "", "", *speeds])
        rows.append([f"{name}, of the matrix rate", "", "", "", "", *shares])
    return rows


def _row(name: str, kernels: list[Kernel], limit: str = "") -> list[str]:
    """The row of some kernels: how many they are, their work, and how many milliseconds they take."""
    launches = sum(kernel.times * kernel.launches for kernel in kernels)
    flops = sum(kernel.times * kernel.flops for kernel in kernels)
    size = sum(kernel.times * kernel.bytes for kernel in kernels)
    times = []
    for gpu, case in COLUMNS:
        took = sum(roofline.seconds(kernel, GPUS[gpu], CASES[case]) for kernel in kernels)
        times.append(f"{1000 * took:.1f}")
    tera = f"{flops / 1e12:.1f}" if flops else ""
    return [name, str(launches), limit, tera, f"{size / 1e9:.1f}", *times]


def _limit_of(kernels: Iterable[Kernel]) -> str:
    """What takes the longer time in the likely case on an H100: "arithmetic" or "memory"."""
    without_memory = replace(GPUS["H100"], bandwidth=float("inf"))
    without_arithmetic = replace(GPUS["H100"], flops=float("inf"))
    arithmetic = sum(roofline.seconds(kernel, without_memory, LIKELY) for kernel in kernels)
    memory = sum(roofline.seconds(kernel, without_arithmetic, LIKELY) for kernel in kernels)
    return "arithmetic" if arithmetic > memory else "memory"


def gains(shape: Shape, gpu: Gpu) -> dict[str, float]:
    """How much faster a training step of the likely case becomes by each remedy, as a share."""
    kernels = roofline.step_kernels(shape)
    before = _estimate(kernels, shape, gpu).images_per_second
    # A product hides that it then moves more bytes: its arithmetic takes longer.
    fused = _without(kernels, roofline.GELU, roofline.BIASES)
    in_float8 = [replace(kernel, flops=kernel.flops / 1.7) for kernel in kernels if kernel.kind == roofline.PRODUCTS]
    faster = [*_without(kernels, roofline.PRODUCTS), *in_float8]
    bf16 = replace(shape, stream_bytes=2)
    large = replace(shape, batch=640)

    after = {
        "matrix products in float8, 1.7 times as fast": _estimate(faster, shape, gpu),
        "GELU and bias gradients within the matrix products": _estimate(fused, shape, gpu),
        "a residual stream in bf16": _estimate(roofline.step_kernels(bf16), bf16, gpu),
        "batches of 640": _estimate(roofline.step_kernels(large), large, gpu),
        "attention twice as fast": _estimate(kernels, shape, gpu, replace(LIKELY, attention=2 * LIKELY.attention)),
        "gradients of q, k and v that need no stacking": _estimate(_without(kernels, roofline.STACK), shape, gpu),
        "no casts": _estimate(_without(kernels, roofline.CASTS), shape, gpu),
        "matrix products at 93% in place of 90%": _estimate(kernels, shape, gpu, replace(LIKELY, products=0.93)),
    }
    return {remedy: estimate.images_per_second / before - 1 for remedy, estimate in after.items()}


def _estimate(kernels: Iterable[Kernel], shape: Shape, gpu: Gpu, case: Case = LIKELY) -> Estimate:
    return roofline.estimate(kernels, shape.batch, gpu, case)


def _without(kernels: Iterable[Kernel], *kinds: str) -> list[Kernel]:
    return [kernel for kernel in kernels if kernel.kind not in kinds]


def main() -> None:
    """Print the table and the list of remedies."""
    shape = Shape()
    header, *rows = table(shape)
    print(tables.markdown(header, rows))
    by_gpu = {name: gains(shape, gpu) for name, gpu in GPUS.items()}
    for remedy in by_gpu["H100"]:
        figures = [f"{share[remedy]:+.0%} on an {name}" for name, share in by_gpu.items()]
        print(f"- {remedy}: {', '.join(figures)}")


if __name__ == "__main__":
    main()
