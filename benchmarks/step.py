"""Measures a training step and a forward pass against timm, Hugging Face and torch.compile of the whole model.

    python -m benchmarks.step                # small, for a CPU: 12 layers of width 64 on 28 x 28 images
    python -m benchmarks.step --size full    # ViT-B/16 at 224, batch 640, for a GPU

Every contender trains the same architecture with Adam, on one batch that stays on the device. Plain timm runs its
layers in sequence, the others run them in a new random order at every step.
"""

import fnmatch
import math
import multiprocessing
import os
import random
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.common import Times, arguments, flops, matrix_product, peak_memory, ratio, report, seconds, take_turns
from layershuffle.commands.logs import set_up_logging
from layershuffle.hardware import fastest_precision, wait
from layershuffle.orders.samplers import LayerDrop, OrderSampler, Shuffle
from layershuffle.training.callbacks import ThroughputLogger
from layershuffle.training.module import FineTuner
from layershuffle.training.objectives import StepKey
from layershuffle.training.optimizer import PAPER_ADAM

PLAIN, FACE, EAGER = "timm, eager, in sequence", "Hugging Face, permuted by hand", "ours, eager"
OURS, LOOP = "ours, compiled", "ours, compiled, by train.py"
AGAIN = "ours, compiled, layers run again"
"""Layers run again for their gradients: it takes part if the ordinary way doesn't fit into the memory."""
FIXED = "torch.compile of the whole, one fixed order"
FORWARD = (PLAIN, FACE, EAGER, OURS, AGAIN, FIXED)
"""The contenders whose forward pass is timed too."""
Autocast = Callable[[], AbstractContextManager[object]]


class ByHand(nn.Module):
    """A timm model whose layers run in a given order, as a user would write it."""

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor, order: list[int]) -> Tensor:
        """images: [batch, channels, height, width]. Returns [batch, classes]."""
        tokens = self.vit.norm_pre(self.vit._pos_embed(self.vit.patch_embed(images)))
        for layer in order:
            tokens = self.vit.blocks[layer](tokens)
        return self.vit.forward_head(self.vit.norm(tokens))


class HuggingFace(nn.Module):
    """``ViTForImageClassification`` of the same size, whose list of layers is permuted before every step."""

    def __init__(self, width: int, depth: int, heads: int, hidden: int, size: int, patch: int, channels: int) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTForImageClassification

        config: Any = ViTConfig(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads)
        config.intermediate_size, config.num_labels = hidden, 10
        config.image_size, config.patch_size, config.num_channels = size, patch, channels
        self.model: Any = ViTForImageClassification(config)
        vit = self.model.vit
        self.holder, self.name = (vit, "layers") if hasattr(vit, "layers") else (vit.encoder, "layer")
        self.layers = list(getattr(self.holder, self.name))

    def forward(self, images: Tensor, order: list[int]) -> Tensor:
        """images: [batch, channels, height, width]. Returns [batch, classes]."""
        setattr(self.holder, self.name, nn.ModuleList(self.layers[layer] for layer in order))
        return self.model(images).logits


class Loop:
    """The training loop that a user would write; each call runs one step."""

    def __init__(self, model: nn.Module, loss: Callable[[int], Tensor], autocast: Autocast, optimizer: Any) -> None:
        self.model, self.loss, self.autocast, self.optimizer = model, loss, autocast, optimizer
        self.step = 0

    def __call__(self) -> None:
        """Run one step: forward, backward and update."""
        self.model.train()
        self.optimizer.zero_grad()
        with self.autocast():
            loss = self.loss(self.step)
        loss.backward()
        self.optimizer.step()
        self.step += 1


@dataclass
class Contender:
    """A training step, a forward pass, and timm's model in it."""

    step: "Loop | TrainingRun"
    forward: Callable[[], object] | None = None
    vit: nn.Module | None = None


class Repeat(IterableDataset):
    """Yields the same batch for ever."""

    def __init__(self, batch: tuple[Tensor, ...]) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        while True:
            yield self.batch


class TrainingRun:
    """Training as ``layershuffle train`` does it, with Lightning's loop and logging; each call runs one step.

    It runs in another process: in a thread, its OpenMP threads would compete with those of the others.
    """

    def __init__(self, **what: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        context.Process(target=_train, args=(theirs, what), daemon=True).start()
        self._wait()

    def _wait(self) -> None:
        if error := self.pipe.recv():
            raise (torch.OutOfMemoryError if "OutOfMemoryError" in error else RuntimeError)(error)

    def __call__(self) -> None:
        """Run from the end of one step to the end of the next."""
        self.pipe.send(None)
        self._wait()


class Turns(pl.Callback):
    """Makes training wait after every step until the other side of the pipe asks for the next."""

    def __init__(self, pipe: Any, device: torch.device) -> None:
        self.pipe, self.device = pipe, device

    def on_train_start(self, *_: Any) -> None:
        """Wait for the first turn."""
        self._wait()

    def on_train_batch_end(self, *_: Any) -> None:
        """Wait for the next turn."""
        self._wait()

    def _wait(self) -> None:
        wait(self.device)
        self.pipe.send(None)
        self.pipe.recv()


def _train(pipe: Any, what: dict[str, Any]) -> None:
    set_up_logging()
    warnings.filterwarnings("ignore", module="lightning")
    device = torch.device(what["device"])
    trainer = pl.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1 if device.type == "cpu" else [device.index or 0],
        precision=what["precision"],
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[Turns(pipe, device), ThroughputLogger()],
        logger=CSVLogger(what["folder"]),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    batch = tuple(part.to(device) for part in what["batch"])
    try:
        trainer.fit(FineTuner(compile=True, **what["model"]), DataLoader(Repeat(batch), batch_size=None))
    except EOFError:  # the benchmark has ended
        pass
    except Exception as error:
        pipe.send(repr(error))


def shuffled(depth: int, step: int) -> list[int]:
    """The order of a step, for the contenders that permute their layers by hand."""
    layers = list(range(depth))
    random.Random(step).shuffle(layers)
    return layers


def graphs() -> int:
    """The number of graphs that were compiled so far."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def main() -> None:
    """Run the benchmark, print the table and write the JSON."""
    parser = arguments(
        "step", "Measure the images per second of a training step and of a forward pass against the alternatives."
    )
    parser.add_argument("--width", type=int, default=None, help="width of the layers (default: 64 small, 768 full)")
    parser.add_argument("--batch", type=int, default=None, help="images per step (default: 64 small, 640 full)")
    parser.add_argument(
        "--whole", type=int, default=3, help="number of orders in which to compile the whole model (0: leave that out)"
    )
    parser.add_argument("--only", nargs="+", default=["*"], help="contenders to time; * stands for anything")
    parser.add_argument("--without", nargs="+", default=[], help="contenders to leave out")
    parser.add_argument(
        "--cache", default=None, help="a folder with compiled kernels to reuse (default: compile everything)"
    )
    parser.add_argument(
        "--precision",
        choices=["auto", "32-true", "bf16-mixed"],
        default="auto",
        help="precision of all contenders (auto: bf16-mixed on a GPU; on a CPU the faster one for timm's eager step)",
    )
    args = parser.parse_args()
    set_up_logging()
    warnings.filterwarnings("ignore", module="lightning")
    full, device = args.size == "full", torch.device(args.device)
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = args.cache or scratch.name
    torch.manual_seed(0)
    depth, width, batch = 12, args.width or (768 if full else 64), args.batch or (640 if full else 64)
    size, patch, channels, ratio_of_mlp = (224, 16, 3, 4) if full else (28, 7, 1, 2)
    heads = max(1, width // (64 if full else 32))
    timm_args: dict[str, Any] = {"img_size": size, "patch_size": patch, "in_chans": channels, "depth": depth}
    timm_args |= {"embed_dim": width, "num_heads": heads, "mlp_ratio": ratio_of_mlp}
    name = "vit_base_patch16_224"
    precision = args.precision

    def autocast() -> AbstractContextManager[object]:
        if precision == "auto":  # fastest_precision is measuring it
            return nullcontext()
        return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed")

    raw = torch.randint(0, 256, (batch, channels, size, size), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (batch,), device=device)

    images = FineTuner(name, 10, timm_args=timm_args).preprocess.to(device)(raw)

    def ours(compile: bool, sampler: OrderSampler = Shuffle(), **arguments: Any) -> Contender:  # noqa: B008
        module = FineTuner(name, 10, sampler=sampler, compile=compile, timm_args=timm_args, **arguments).to(device)

        def loss(step: int) -> Tensor:
            orders = module.orders.sample_parts(step, 0)
            return module.objective.loss(module.model, images, labels, orders, StepKey(0, step, 0)).total

        def forward() -> object:
            return module.model.eval()(images, module.orders.sample(random.randrange(10**6)))

        fused = torch.optim.Adam(module.model.parameters(), **PAPER_ADAM, fused=True)
        return Contender(Loop(module.model, loss, autocast, fused), forward, module.model.vit)

    def theirs(model: nn.Module, run: Callable[[int], Tensor], fused: bool | None = None) -> Contender:
        optimizer = torch.optim.Adam(model.parameters(), **PAPER_ADAM, fused=fused)
        loop = Loop(model, lambda step: F.cross_entropy(run(step), labels), autocast, optimizer)

        def forward() -> object:
            model.eval()
            return run(random.randrange(10**6))

        return Contender(loop, forward, getattr(model, "vit", None))

    def plain() -> Contender:
        vit = timm.create_model(name, num_classes=10, **timm_args).to(device)
        return replace(theirs(vit, lambda step: vit(images)), vit=vit)

    def hugging_face() -> Contender:
        face = HuggingFace(width, depth, heads, ratio_of_mlp * width, size, patch, channels).to(device)
        return theirs(face, lambda step: face(images, shuffled(depth, step)))

    def compiled_whole(order_of: Callable[[int], list[int]]) -> Contender:
        whole = ByHand(timm.create_model(name, num_classes=10, **timm_args)).to(device)
        run = torch.compile(whole, dynamic=False)
        return theirs(whole, lambda step: run(images, order_of(step)), fused=True)

    def training_run() -> Contender:
        model = {"name": name, "num_classes": 10, "timm_args": timm_args}
        batch_on_host = (raw.cpu(), labels.cpu())
        return Contender(
            TrainingRun(model=model, batch=batch_on_host, device=args.device, precision=precision, folder=scratch.name)
        )

    if precision == "auto":
        precision = "bf16-mixed" if device.type == "cuda" else fastest_precision(plain().step, device)
    makers: dict[str, Callable[[], Contender]] = {
        PLAIN: plain,
        FACE: hugging_face,
        EAGER: lambda: ours(False),
        OURS: lambda: ours(True),
        "ours, compiled, position encoded": lambda: ours(True, position="encode"),
        "ours, compiled, position predicted": lambda: ours(True, position="predict"),
        "ours, compiled, LayerDrop 0.2": lambda: ours(True, LayerDrop(0.2)),
        "ours, compiled, sublayers": lambda: ours(True, order="sublayers"),
        "ours, compiled, 2 orders a batch": lambda: ours(True, orders_per_batch=2),
        LOOP: training_run,
    }
    if device.type == "cuda":  # A CPU gains nothing from it, and takes minutes to compile it.
        makers[FIXED] = lambda: compiled_whole(lambda _: shuffled(depth, 0))
    wanted = [each for each in makers if _matches(each, args.only) and not _matches(each, args.without)]
    makers[AGAIN] = lambda: ours(True, checkpoint_layers=True)

    contenders: dict[str, Contender] = {}
    first, compiled_graphs = {}, {}
    for contender in wanted:
        made, before = None, graphs()
        try:
            made = makers[contender]()
            first[contender] = seconds(made.step, device)
        except ImportError:
            print('Hugging Face is left out: pip install "layershuffle[benchmarks]"')
        except torch.OutOfMemoryError:
            print(f"{contender} is left out: {batch} images don't fit into the memory")
            made = None
            if contender == OURS:
                wanted.append(AGAIN)
        if made:
            contenders[contender] = made
            compiled_graphs[contender] = None if contender == LOOP else graphs() - before
        torch.cuda.empty_cache()  # of what failed, and for the process of the training run
    steps = {contender: made.step for contender, made in contenders.items()}
    rounds = args.rounds or 20
    before = graphs()
    repeats = 1 if full and device.type == "cpu" else 5
    times = take_turns(steps, rounds, device, warm_up=2, repeats=repeats)
    assert graphs() == before, "an order added a graph"

    forwards = {each: made.forward for each, made in contenders.items() if made.forward and each in FORWARD}
    # The same weights for all: with some, numbers become so small that a CPU slows down.
    trained = [made.vit.state_dict() for made in contenders.values() if made.vit][:1]
    for contender in forwards:
        if vit := contenders[contender].vit:
            vit.load_state_dict(trained[0])
    with torch.inference_mode(), autocast():
        forward_times = take_turns(forwards, rounds, device, warm_up=2, repeats=repeats)

    work: dict[str, float] = {}
    forward_work: dict[str, float] = {}
    memory: dict[str, int | None] = dict.fromkeys(steps)
    loops = {contender: step for contender, step in steps.items() if isinstance(step, Loop)}
    for contender, loop in loops.items():
        loop.optimizer.zero_grad()  # so that the gradients count
        memory[contender] = peak_memory(loop, device)
    whole_images, whole_labels = images, labels
    # The work of an image doesn't depend on the batch, and layers that are not compiled take more memory.
    images, labels = images[:4], labels[:4]
    with torch.compiler.set_stance("force_eager"):
        for contender, loop in loops.items():
            loop.step, several = 0, rounds if "LayerDrop" in contender else 1  # its mean over the steps timed
            work[contender] = flops(lambda loop=loop, n=several: [loop() for _ in range(n)]) / several / len(labels)  # type: ignore
            if contender in forwards:
                with torch.inference_mode(), autocast():
                    forward_work[contender] = flops(forwards[contender]) / len(labels)
    if LOOP in steps:
        work[LOOP] = work.get(OURS, math.nan)
    images, labels = whole_images, whole_labels
    if args.whole:
        loop = compiled_whole(lambda step: shuffled(depth, step)).step
        contender, before = f"torch.compile of the whole, {args.whole} orders", graphs()
        took = [seconds(loop, device) for _ in range(args.whole)]
        first[contender], compiled_graphs[contender] = took[0], graphs() - before
        times[contender], memory[contender], work[contender] = took, None, work.get(PLAIN, math.nan)
    ceiling = matrix_product(device, torch.bfloat16 if precision == "bf16-mixed" else torch.float32)
    setting = {
        "size": args.size,
        "layers": depth,
        "width": width,
        "batch": batch,
        "rounds": rounds,
        "steps a turn": repeats,
    }
    setting |= {"precision": precision, "ceiling in GFLOP/s": ceiling / 1e9}
    rows = []
    for contender, took in times.items():
        speed = batch / statistics.median(took)
        forwarded = forward_times.get(contender)
        rows.append(
            {
                "contender": contender,
                "images/s": speed,
                "to timm": _ratio(times, contender, PLAIN),
                "to ours": _ratio(times, contender, OURS),
                "MFLOP/image": work[contender] / 1e6,
                "of ceiling": speed * work[contender] / ceiling,
                "forward images/s": (forward := batch / statistics.median(forwarded)) if forwarded else None,
                "to timm ": _ratio(forward_times, contender, PLAIN) if forwarded else None,
                "forward of ceiling": forward * forward_work[contender] / ceiling if forwarded else None,
                "peak MB": None if memory[contender] is None else (memory[contender] or 0) / 2**20,
                "first step s": first[contender],
                "graphs": compiled_graphs[contender],
            }
        )
    report("step", rows, device, setting, args.output)


def _matches(contender: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(contender, pattern) for pattern in patterns)


def _ratio(times: Times, of: str, to: str) -> float | None:
    if to not in times:
        return None
    if len(times[of]) == len(times[to]):
        return ratio(times, of, to)
    return statistics.median(times[to]) / statistics.median(times[of])


if __name__ == "__main__":
    main()
