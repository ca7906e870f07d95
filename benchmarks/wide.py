"""Measures how long a model takes whose layers were merged, several at a time, against the same model layer by layer.

    python -m benchmarks.wide                              # small, for a CPU: ViT-Ti/16 at 224
    python -m benchmarks.wide --size full                  # ViT-B/16 at 224
    python -m benchmarks.wide --formats eager compile onnx # also compiled, and as programs for ONNX Runtime

The models have the 12 layers of timm's, with random weights: their values don't change how long a product takes.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import Times, arguments, processor_seconds, ratio, report, seconds, take_turns
from layershuffle import create_model
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.checkpoints.program_export import export_programs
from layershuffle.models import OrderedViT
from layershuffle.models.widen import widen
from layershuffle.orders.order import Order, sequential
from layershuffle.results import ModelInfo

PLAIN = "layer by layer"
STEPS = (12, 6, 4, 3)
"""In how many steps the layers run."""
IMAGES = 12
"""How many images of each batch size a contender classifies, but in no fewer than ``ROUNDS`` rounds."""
ROUNDS = 3

Forward = Callable[[Tensor], object]


def main() -> None:
    """Run the benchmark, print the table and write the JSON."""
    args = _parser().parse_args()
    # All contenders have one function in common, of which torch would compile only a few versions.
    torch._dynamo.config.recompile_limit = 1000
    device = torch.device(args.device)
    torch.manual_seed(0)
    name = "vit_base_patch16_224" if args.size == "full" else "vit_tiny_patch16_224"
    model = create_model(name, 1000).eval().to(device)
    orders = {PLAIN: sequential(model.depth), **orders_by_name(model.depth)}
    contenders = {}
    with tempfile.TemporaryDirectory() as folder:
        for form, (contender, order) in product(args.formats, orders.items()):
            contenders[f"{form}, {contender}"] = make(model, order, form, Path(folder))
        times = {batch: time_batch(model, contenders, batch, args.rounds, args.clock) for batch in args.batches}

    setting = {"model": name, "clock": args.clock}
    report("wide", [row(contender, times) for contender in contenders], device, setting, args.output)


def _parser() -> argparse.ArgumentParser:
    parser = arguments("wide", "Measure how much faster merged layers are than the same layers one after the other.")
    option = parser.add_argument
    option("--batches", type=int, nargs="+", default=[1, 2, 4, 8], help="Images per batch.")
    option(
        "--clock",
        choices=["wall", "processor"],
        default="wall",
        help="Time to measure; that of the processor, with one thread, suits a machine that others use too.",
    )
    option(
        "--formats",
        nargs="+",
        choices=["eager", "compile", "onnx"],
        default=["eager"],
        help="PyTorch, PyTorch with torch.compile for each size of a batch, or programs for ONNX Runtime.",
    )
    return parser


def orders_by_name(depth: int) -> dict[str, Order]:
    """The orders to merge: groups of halves in each number of steps, and groups of whole layers in four."""
    orders = {}
    for steps in STEPS:
        orders[f"{steps} steps of halves"] = in_groups(depth, steps, "af")
    orders["4 steps of whole layers"] = in_groups(depth, 4, [""])
    return orders


def in_groups(depth: int, steps: int, halves: Sequence[str]) -> Order:
    """Layers 0 to ``depth`` - 1 in groups of the same size; of each group first one half, then the other."""
    size = depth // steps
    groups = []
    for start in range(0, depth, size):
        for half in halves:
            units = "+".join(f"{layer}{half}" for layer in range(start, start + size))
            groups.append(f"({units})" if size > 1 else units)
    return Order(groups)


def make(model: OrderedViT, order: Order, form: str, folder: Path) -> Forward:
    """The forward pass of a model in one order, with its groups merged: of float32 images [batch, channels, H, W]."""
    if form != "onnx":
        is_plain = order == sequential(model.depth)
        forward = model.vit if is_plain else widen(model, order)
        return torch.compile(forward, dynamic=False) if form == "compile" else forward
    path = folder / str(len(list(folder.iterdir())))
    loaded = LoadedModel(model, ModelInfo(name="benchmark", source="random weights", config=model.config))
    export_programs(loaded, path, "onnx", order=order, normalises=False)
    return open_onnx(path / "model.onnx")


def open_onnx(path: Path) -> Forward:
    """Opens a program that takes as many threads as PyTorch does."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> object:
        return session.run(None, {"images": images.numpy()})

    return run


@torch.inference_mode()
def time_batch(model: OrderedViT, contenders: dict[str, Forward], batch: int, rounds: int | None, clock: str) -> Times:
    """Time the contenders in turns on a batch of this size."""
    device = next(model.parameters()).device
    images = torch.randn(batch, *model.image_shape, device=device)

    def work(forward: Forward) -> Callable[[], object]:
        return lambda: forward(images)

    works = {contender: work(forward) for contender, forward in contenders.items()}
    measure = processor_seconds if clock == "processor" else seconds
    return take_turns(works, rounds or max(ROUNDS, IMAGES // batch), device, clock=measure)


def row(contender: str, times: dict[int, Times]) -> dict[str, Any]:
    """The row of a contender in the table: by images per batch, how many times as fast it is, and milliseconds.

    Ratios are to the model that runs layer by layer in the same format.
    """
    form, _, _ = contender.partition(", ")
    columns: dict[str, Any] = {"contender": contender}
    for batch, batch_times in times.items():
        columns[f"ratio, {batch}"] = ratio(batch_times, contender, f"{form}, {PLAIN}")
    for batch, batch_times in times.items():
        columns[f"ms, {batch}"] = 1000 * statistics.median(batch_times[contender])
    return columns


if __name__ == "__main__":
    main()
