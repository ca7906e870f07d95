"""Measures a training step and a forward pass against timm, Hugging Face and torch.compile of the whole model.

    python -m benchmarks.step                # small, for a CPU: 12 layers of width 64 on 28 x 28 images
    python -m benchmarks.step --size full    # ViT-B/16 at 224, batch 640, for a GPU

Every contender trains the same architecture with Adam, on one batch that stays on the device. Plain timm runs its
layers in sequence, the others run them in a new random order at every step.
"""

import argparse
import fnmatch
import math
import os
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.common import Times, arguments, flops, matrix_product, peak_memory, ratio, report, seconds, take_turns
from benchmarks.contenders import AGAIN, FORWARD, LOOP, OURS, PLAIN, Contender, Loop, Task, shuffled
from layershuffle.commands.logs import set_up_logging


@dataclass
class Measured:
    """What is measured of each contender, by its name.

    Attributes:
        first: the seconds of its first step, in which it is compiled.
        graphs: how many graphs were compiled; None if that isn't known.
        steps: the seconds of its steps.
        forwards: the seconds of its forward passes.
        step_flops: FLOPs of a step for an image.
        forward_flops: FLOPs of a forward pass for an image.
        memory: bytes that a step holds at most; None if that isn't known.
    """

    first: dict[str, float] = field(default_factory=dict)
    graphs: dict[str, int | None] = field(default_factory=dict)
    steps: Times = field(default_factory=dict)
    forwards: Times = field(default_factory=dict)
    step_flops: dict[str, float] = field(default_factory=dict)
    forward_flops: dict[str, float] = field(default_factory=dict)
    memory: dict[str, int | None] = field(default_factory=dict)


def main() -> None:
    """Run the benchmark, print the table and write the JSON."""
    args = _parser().parse_args()
    set_up_logging()
    warnings.filterwarnings("ignore", module="lightning")
    # A folder of its own for compiled kernels: those of an earlier benchmark would make the first step look quick.
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = args.cache or scratch.name
    torch.manual_seed(0)
    is_full = args.size == "full"
    task = Task(
        device=torch.device(args.device),
        batch=args.batch or (640 if is_full else 64),
        width=args.width or (768 if is_full else 64),
        is_full=is_full,
        precision=args.precision,
        folder=scratch.name,
    )
    rounds = args.rounds or 20
    # A large model on a CPU takes seconds for a step.
    repeats = 1 if is_full and task.device.type == "cpu" else 5

    measured = Measured()
    contenders = make_contenders(task, args.only, args.without, measured)
    time_steps(task, contenders, rounds, repeats, measured)
    time_forwards(task, contenders, rounds, repeats, measured)
    measure_memory(task, contenders, measured)
    count_flops(task, contenders, rounds, measured)
    if args.whole:
        time_whole(task, args.whole, measured)

    dtype = torch.bfloat16 if task.precision == "bf16-mixed" else torch.float32
    ceiling = matrix_product(task.device, dtype)
    setting = {
        "size": args.size,
        "layers": task.depth,
        "width": task.width,
        "batch": task.batch,
        "rounds": rounds,
        "steps a turn": repeats,
        "precision": task.precision,
        "ceiling in GFLOP/s": ceiling / 1e9,
    }
    rows = [row(name, task.batch, ceiling, measured) for name in measured.steps]
    report("step", rows, task.device, setting, args.output)


def _parser() -> argparse.ArgumentParser:
    parser = arguments(
        "step", "Measure the images per second of a training step and of a forward pass against the alternatives."
    )
    option = parser.add_argument
    option("--width", type=int, help="Width of the layers (default: 64 small, 768 full).")
    option("--batch", type=int, help="Images per step (default: 64 small, 640 full).")
    option("--whole", type=int, default=3, help="Number of orders in which to compile the whole model (0: none).")
    option("--only", nargs="+", default=["*"], help="Contenders to time; * stands for anything.")
    option("--without", nargs="+", default=[], help="Contenders to leave out.")
    option("--cache", help="Folder with compiled kernels to reuse (default: compile everything).")
    option(
        "--precision",
        choices=["auto", "32-true", "bf16-mixed"],
        default="auto",
        help="Precision of all contenders (auto: bf16-mixed on a GPU; on a CPU the faster one for timm's eager step).",
    )
    return parser


def make_contenders(task: Task, only: list[str], without: list[str], measured: Measured) -> dict[str, Contender]:
    """Make the contenders, and measure the first step of each, in which it is compiled."""
    makers = task.makers()
    names = [name for name in makers if _matches(name, only) and not _matches(name, without)]
    makers[AGAIN] = lambda: task.ours(checkpoint_layers=True)
    contenders: dict[str, Contender] = {}
    # The list grows while it is gone through: if OURS doesn't fit, AGAIN follows.
    for name in names:
        before = graphs()
        contender = None
        try:
            contender = makers[name]()
            measured.first[name] = seconds(contender.step, task.device)
        except ImportError:
            print('Hugging Face is left out: pip install "layershuffle[benchmarks]"')
        except torch.OutOfMemoryError:
            print(f"{name} is left out: {task.batch} images don't fit into the memory")
            # What is on the device must go before the next contender comes.
            contender = None
            if name == OURS:
                names.append(AGAIN)
        else:
            contenders[name] = contender
            # A training run compiles in a process of its own.
            measured.graphs[name] = None if name == LOOP else graphs() - before
        # torch would keep the memory of a contender that failed; the process of the training run needs it.
        torch.cuda.empty_cache()
    return contenders


def time_steps(task: Task, contenders: Mapping[str, Contender], rounds: int, repeats: int, measured: Measured) -> None:
    """Time training steps in turns."""
    steps = {name: contender.step for name, contender in contenders.items()}
    before = graphs()
    measured.steps = take_turns(steps, rounds, task.device, warm_up=2, repeats=repeats)
    assert graphs() == before, "an order added a graph"


def time_forwards(
    task: Task, contenders: Mapping[str, Contender], rounds: int, repeats: int, measured: Measured
) -> None:
    """Time forward passes in turns."""
    forwards = _forwards(contenders)
    # All get the same weights: with some, numbers become so small that a CPU slows down.
    vits = (contender.vit for contender in contenders.values() if contender.vit)
    first_vit = next(vits, None)
    for name in forwards:
        vit = contenders[name].vit
        if vit and first_vit:
            vit.load_state_dict(first_vit.state_dict())
    with torch.inference_mode(), task.autocast():
        measured.forwards = take_turns(forwards, rounds, task.device, warm_up=2, repeats=repeats)


def measure_memory(task: Task, contenders: Mapping[str, Contender], measured: Measured) -> None:
    """Measure the memory of a step of each contender in this process."""
    measured.memory = dict.fromkeys(contenders)
    for name, loop in _loops(contenders).items():
        # So that the gradients count.
        loop.optimizer.zero_grad()
        measured.memory[name] = peak_memory(loop, task.device)


def count_flops(task: Task, contenders: Mapping[str, Contender], rounds: int, measured: Measured) -> None:
    """Count the FLOPs of a step and of a forward pass, for an image."""
    images = task.images
    labels = task.labels
    # The work of an image doesn't depend on the batch, and layers that are not compiled take more memory.
    task.images = images[:4]
    task.labels = labels[:4]
    forwards = _forwards(contenders)
    with torch.compiler.set_stance("force_eager"):
        for name, loop in _loops(contenders).items():
            # LayerDrop's work differs from step to step: its mean over the steps that were timed.
            loop.step = 0
            steps = rounds if "LayerDrop" in name else 1
            measured.step_flops[name] = flops(_several(loop, steps)) / steps / len(task.labels)
            if name in forwards:
                with torch.inference_mode(), task.autocast():
                    measured.forward_flops[name] = flops(forwards[name]) / len(task.labels)
    if LOOP in contenders:
        measured.step_flops[LOOP] = measured.step_flops.get(OURS, math.nan)
    task.images = images
    task.labels = labels


def time_whole(task: Task, count: int, measured: Measured) -> None:
    """Time the first step of each of ``count`` orders, with a model that is compiled as a whole for each of them."""
    name = f"torch.compile of the whole, {count} orders"
    loop = task.compiled_whole(lambda step: shuffled(task.depth, step)).step
    before = graphs()
    took = [seconds(loop, task.device) for _ in range(count)]
    measured.first[name] = took[0]
    measured.graphs[name] = graphs() - before
    measured.steps[name] = took
    measured.memory[name] = None
    measured.step_flops[name] = measured.step_flops.get(PLAIN, math.nan)


def row(name: str, batch: int, ceiling: float, measured: Measured) -> dict[str, Any]:
    """A contender's row of the table; ``ceiling`` is in FLOP/s."""
    speed = batch / statistics.median(measured.steps[name])
    step_flops = measured.step_flops[name]
    columns: dict[str, Any] = {
        "contender": name,
        "images/s": speed,
        "to timm": _ratio(measured.steps, name, PLAIN),
        "to ours": _ratio(measured.steps, name, OURS),
        "MFLOP/image": step_flops / 1e6,
        "of ceiling": speed * step_flops / ceiling,
        "forward images/s": None,
        # A column of its own, which is called like the one above.
        "to timm ": None,
        "forward of ceiling": None,
        "peak MB": None,
        "first step s": measured.first[name],
        "graphs": measured.graphs[name],
    }
    if name in measured.forwards:
        forward_speed = batch / statistics.median(measured.forwards[name])
        columns["forward images/s"] = forward_speed
        columns["to timm "] = _ratio(measured.forwards, name, PLAIN)
        columns["forward of ceiling"] = forward_speed * measured.forward_flops[name] / ceiling
    memory = measured.memory[name]
    if memory is not None:
        columns["peak MB"] = memory / 2**20
    return columns


def graphs() -> int:
    """The number of graphs that were compiled until now."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def _loops(contenders: Mapping[str, Contender]) -> dict[str, Loop]:
    """The steps of the contenders that run in this process."""
    loops = {}
    for name, contender in contenders.items():
        if isinstance(contender.step, Loop):
            loops[name] = contender.step
    return loops


def _forwards(contenders: Mapping[str, Contender]) -> dict[str, Callable[[], object]]:
    """The forward passes that are timed."""
    forwards = {}
    for name, contender in contenders.items():
        if contender.forward and name in FORWARD:
            forwards[name] = contender.forward
    return forwards


def _several(loop: Loop, steps: int) -> Callable[[], None]:
    """Runs several steps."""

    def run() -> None:
        for _ in range(steps):
            loop()

    return run


def _matches(contender: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(contender, pattern) for pattern in patterns)


def _ratio(times: Times, contender: str, reference: str) -> float | None:
    """How many times as fast ``contender`` is as ``reference``; None if the reference was left out."""
    if reference not in times:
        return None
    if len(times[contender]) == len(times[reference]):
        return ratio(times, contender, reference)
    # The model that is compiled for each order takes no turns, so that its rounds can't be compared one by one.
    return statistics.median(times[reference]) / statistics.median(times[contender])


if __name__ == "__main__":
    main()
