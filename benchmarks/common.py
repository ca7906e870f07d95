"""What the benchmarks share: options, timing in turns, FLOPs, memory, and the report as a table and JSON.

A benchmark makes its contenders, times them in turns, and passes one row per contender to ``report``::

    parser = arguments("step", "How fast a training step is.")
    args = parser.parse_args()
    device = torch.device(args.device)
    times = take_turns({"ours": ours, "plain": plain}, rounds=10, device=device)
    rows = [{"contender": name, "images/s": batch / median(took), "ratio": ratio(times, name, "plain")} ...]
    report("step", rows, device, {"batch": batch}, args.output)
"""

import argparse
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from layershuffle.files import write_whole
from layershuffle.hardware import device_name, seconds

Times = dict[str, list[float]]
"""Seconds of every round, by contender; entry n of each contender is of the same round."""


def arguments(name: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options of every benchmark: --size, --device, --rounds and --output."""
    parser = argparse.ArgumentParser(f"python -m benchmarks.{name}", description=description)
    parser.add_argument("--size", choices=["small", "full"], default="small", help="small: for a CPU; full: for a GPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1")
    parser.add_argument("--rounds", type=int, default=None, help="how often each contender takes its turn")
    parser.add_argument("--output", type=Path, default=None, help="a JSON file for the results")
    return parser


def machine(device: torch.device) -> dict[str, Any]:
    """The names of the device and of the processor's vector instructions, and the versions of torch and Python."""
    about: dict[str, Any] = {
        "device": device_name(device),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
    }
    if device.type != "cuda":
        about["vector instructions"] = torch.backends.cpu.get_cpu_capability()
    about["torch"] = torch.__version__
    about["python"] = platform.python_version()
    return about


def matrix_product(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest square matrix product, as a ceiling; a multiplication and an addition are two FLOPs."""
    best = 0.0
    # Which size is the fastest depends on the device: small ones don't fill it, large ones don't fit its caches.
    sizes = (4096, 8192) if device.type == "cuda" else (512, 1024, 2048)
    for size in sizes:
        left = torch.randn(size, size, device=device, dtype=dtype)
        right = torch.randn(size, size, device=device, dtype=dtype)
        times = take_turns({"product": partial(torch.matmul, left, right)}, 10, device)
        best = max(best, 2 * size**3 / min(times["product"]))
    return best


def flops(work: Callable[[], object]) -> int:
    """FLOPs of the matrix products and attention in ``work``, which must run eagerly."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors that ``work`` holds at once, without those that existed before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    # torch keeps no peak for the CPU, so that it is summed up from the profile. Frees have negative sizes.
    profiler: Any = profile.profiler
    allocations = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    allocations.sort(key=lambda event: event.start_ns())
    held = 0
    most = 0
    for event in allocations:
        held += event.nbytes()
        most = max(most, held)
    return most


def take_turns(
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    warm_up: int = 1,
    repeats: int = 1,
    clock: Callable[[Callable[[], object], torch.device], float] = seconds,
) -> Times:
    """Time the contenders in a new random sequence each round, so that changes of the machine's speed affect all alike.

    The first ``warm_up`` rounds don't count. In its turn a contender works ``repeats`` times, and the mean time counts,
    because the first time finds the caches full of other contenders' data. ``clock`` measures how long a turn takes.
    """
    times: Times = {name: [] for name in contenders}
    rng = random.Random(0)
    # A contender alone is timed quickly, and often in a benchmark.
    is_hidden = len(contenders) == 1
    console = Console(stderr=True)
    for index in track(range(warm_up + rounds), "taking turns", transient=True, disable=is_hidden, console=console):
        # A fixed sequence would always give the same contender the caches that the same other one has filled.
        for name in sorted(contenders, key=lambda _: rng.random()):
            mean_seconds = clock(partial(_repeat, contenders[name], repeats), device) / repeats
            if index >= warm_up:
                times[name].append(mean_seconds)
    return times


def processor_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The processor time that ``work`` takes, in seconds, over all threads: what others do meanwhile doesn't count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def ratio(times: Times, contender: str, reference: str) -> float:
    """How many times as fast ``contender`` is as ``reference``: the median of the rounds' ratios.

    Both worked in each round, one soon after the other, so that a slow phase of the machine cancels out.
    """
    ratios = []
    for contender_seconds, reference_seconds in zip(times[contender], times[reference]):
        ratios.append(reference_seconds / contender_seconds)
    return statistics.median(ratios)


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    device: torch.device,
    setting: Mapping[str, Any],
    output: Path | None = None,
) -> None:
    """Print the machine, the setting and a Markdown table of the rows, and write all of it as JSON.

    Args:
        name: the name of the benchmark.
        rows: one per contender, all with the same keys, which are the columns; None is printed as a dash.
        device: the device on which it ran.
        setting: the sizes and options of the run, in plain values.
        output: the JSON file, or None for no file.
    """
    about = machine(device)
    table = Table(box=MARKDOWN)
    for index, column in enumerate(rows[0]):
        # The first column has the names of the contenders, all others numbers.
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*map(_text, row.values()))

    # Wide enough for all columns: the table is copied into the documentation.
    console = Console(width=200, markup=False, highlight=False)
    for facts in (about, setting):
        texts = [f"{key} {_text(value)}" for key, value in facts.items()]
        console.print(", ".join(texts))
    console.print(table)
    if output:
        content = {"benchmark": name, "machine": about, "setting": dict(setting), "rows": [dict(row) for row in rows]}
        write_whole(output, json.dumps(content, indent=1) + "\n")
        console.print(f"results: {output}")


def _text(value: Any) -> str:
    """A value as the table shows it: floats with three digits, or without decimals from 100 up."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"
