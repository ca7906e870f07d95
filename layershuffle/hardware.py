"""The name of a device, and the precision and the batch size that measurements find best for it."""

import platform
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """The name of the GPU or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    name = re.search(r"^model name\s*: *(.+?) *$", cpus.read_text() if cpus.exists() else "", re.MULTILINE)
    return name[1] if name else platform.machine()


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time that ``work`` takes, including what it leaves to the device."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def fastest_precision(work: Callable[[], object], device: torch.device, repeats: int = 3) -> str:
    """Measure which of "32-true" and "bf16-mixed" is faster for ``work``, such as a forward pass, on ``device``.

    The work itself is measured, because small layers can be slower in bfloat16 even where matrix products are faster.
    One small matrix product is measured first: a CPU without instructions for bfloat16 takes hundreds of times as long
    for it, and would take minutes for the work. float16 is not considered, because it can overflow.
    """

    def product(dtype: torch.dtype) -> float:
        one = torch.ones(128, 128, device=device, dtype=dtype)
        _ = one @ one  # the first product also loads the kernel
        return min(seconds(lambda: one @ one, device) for _ in range(3))

    if product(torch.bfloat16) > 4 * product(torch.float32):
        return "32-true"
    took: dict[str, list[float]] = {"32-true": [], "bf16-mixed": []}
    for _ in range(repeats + 1):
        for precision, times in took.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                times.append(seconds(work, device))
    return min(took, key=lambda precision: statistics.median(took[precision][1:]))  # the first run is a warm-up


def largest_batch(attempt: Callable[[int], object], start: int, limit: int) -> int:
    """The largest batch, ``start`` times a power of two, that fits into the device's memory.

    Args:
        attempt: runs a batch of the given number of images; raises torch.OutOfMemoryError if it doesn't fit.
        start: the batch to begin with, which is taken to fit.
        limit: the number of images that there are, which need no larger batch.
    """
    batch = start
    while batch < limit:
        try:
            attempt(2 * batch)
        except torch.OutOfMemoryError:
            break
        finally:
            torch.cuda.empty_cache()  # which does nothing without a GPU
        batch *= 2
    return min(batch, max(start, limit))
