"""The name of a device, and the precision and the batch size that measurements find best for it."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """The name of the GPU or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


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
    One small matrix product is tried before: a CPU without instructions for bfloat16 needs hundreds of times as long
    for it, and would need minutes for the work. float16 is not considered, because it can overflow.
    """
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.ones(128, 128, device=device, dtype=dtype)
        _ = one @ one  # the first product also loads the kernel
        products[dtype] = min(seconds(lambda one=one: one @ one, device) for _ in range(3))  # type: ignore[misc]
    if products[torch.bfloat16] > 4 * products[torch.float32]:
        return "32-true"
    took: dict[str, list[float]] = {"32-true": [], "bf16-mixed": []}
    for repeat in range(repeats + 1):
        for precision, times in took.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                once = seconds(work, device)
            if repeat:  # the first run is a warm-up
                times.append(once)
    return min(took, key=lambda precision: statistics.median(took[precision]))


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
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        batch *= 2
    return min(batch, max(start, limit))
