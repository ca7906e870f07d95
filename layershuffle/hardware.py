"""What a device is called, and what it does best: found by measuring."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """The name of the GPU or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long ``work`` takes, the device's part included."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def fastest_precision(work: Callable[[], object], device: torch.device, repeats: int = 3) -> str:
    """Which of "32-true" and "bf16-mixed" does ``work``, such as a forward pass, in less time on ``device``.

    Small layers can be slower in bfloat16 even where its matrix product is faster, so the work itself is measured. One
    small matrix product decides before that: a processor without instructions for bfloat16 needs hundreds of times as
    long, and would hold up the work for minutes. float16, which overflows, is left to whoever asks for it.
    """
    products = {}
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.ones(128, 128, device=device, dtype=dtype)
        _ = one @ one  # the first one loads the kernel
        products[dtype] = min(seconds(lambda one=one: one @ one, device) for _ in range(3))  # type: ignore[misc]
    if products[torch.bfloat16] > 4 * products[torch.float32]:
        return "32-true"
    took: dict[str, list[float]] = {"32-true": [], "bf16-mixed": []}
    for repeat in range(repeats + 1):
        for precision, times in took.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                once = seconds(work, device)
            if repeat:  # the first one warms up
                times.append(once)
    return min(took, key=lambda precision: statistics.median(took[precision]))


def largest_batch(attempt: Callable[[int], object], start: int, limit: int) -> int:
    """The largest batch that fits into the device's memory, of ``start`` times a power of two.

    Args:
        attempt: does with a batch of so many images what needs the most memory; raises torch.OutOfMemoryError.
        start: where to begin, and the least that is returned.
        limit: images there are; a batch that holds them all is large enough.
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
