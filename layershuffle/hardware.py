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
    # Linux tells the processor's name in this file. Python only knows its architecture.
    cpus = Path("/proc/cpuinfo")
    text = cpus.read_text(encoding="utf-8") if cpus.exists() else ""
    name = re.search(r"^model name\s*: *(.+?) *$", text, re.MULTILINE)
    if not name:
        return platform.machine()
    return name[1]


def memory_bandwidth(device: torch.device) -> float:
    """The bytes per second of a GPU's memory on paper; 0 if the driver doesn't tell."""
    properties = torch.cuda.get_device_properties(device)
    # The clock is in kHz, and there are two transfers in each of its cycles. The bus is as wide as this many bits.
    return 2 * 1000 * properties.memory_clock_rate * properties.memory_bus_width / 8


def wait(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The time that ``work`` takes, in seconds, including what it leaves to the device."""
    # A GPU works on its own while Python goes on. It must be idle at the start and at the end of the measurement.
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
    if _product_seconds(torch.bfloat16, device) > 4 * _product_seconds(torch.float32, device):
        return "32-true"

    # In turns, so that changes of the machine's speed affect both alike.
    times: dict[str, list[float]] = {"32-true": [], "bf16-mixed": []}
    for _ in range(repeats + 1):
        for precision, precision_times in times.items():
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
                precision_times.append(seconds(work, device))
    # The first run is a warm-up.
    medians = {precision: statistics.median(precision_times[1:]) for precision, precision_times in times.items()}
    return min(medians, key=medians.__getitem__)


def _product_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The shortest of three times that a small matrix product takes: disturbances only make a time longer."""
    matrix = torch.ones(128, 128, device=device, dtype=dtype)
    # The first product also loads the kernel.
    _ = matrix @ matrix
    return min(seconds(lambda: matrix @ matrix, device) for _ in range(3))


FULL_MEMORY = re.compile(r"(?i)cuda.*out of memory|(CUBLAS|CUDNN|CUSOLVER)_STATUS_\w*ALLOC")
"""What CUDA and its libraries say when the GPU's memory is full. They take memory without asking torch for it."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory is full: torch, CUDA or one of its libraries found no more."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and FULL_MEMORY.search(str(error)) is not None


def largest_batch(attempt: Callable[[int], object], start: int, limit: int) -> int:
    """The largest batch, ``start`` times a power of two, that fits into the device's memory.

    Args:
        attempt: runs a batch of the given number of images; raises an error of a full memory if it doesn't fit.
        start: the batch to begin with, which is taken to fit.
        limit: the number of images that there are, which need no larger batch.
    """
    # Powers of two suit the hardware, and doubling needs few attempts.
    batch = start
    while batch < limit:
        try:
            attempt(2 * batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            break
        finally:
            # What a failed attempt has taken would be missing in what follows. Without a GPU this does nothing.
            torch.cuda.empty_cache()
        batch *= 2
    return min(batch, max(start, limit))
