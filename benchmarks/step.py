"""Measures a training step and a forward pass against timm, Hugging Face and torch.compile of the whole model.

    python -m benchmarks.step                # small, for a CPU: 12 layers of width 64 on 28 x 28 images
    python -m benchmarks.step --size full    # ViT-B/16 at 224, batch 640, for a GPU

Every contender trains the same architecture with Adam, on one batch that stays on the device. Plain timm runs its
layers in sequence, the others run them in a new random order at every step.
"""

import multiprocessing
import os
import random
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
import timm
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.common import Times, arguments, flops, matrix_product, peak_memory, ratio, report, seconds, take_turns
from layershuffle.commands.errors import quieten
from layershuffle.hardware import fastest_precision, wait
from layershuffle.orders.samplers import LayerDrop, OrderSampler, Shuffle
from layershuffle.training.callbacks import ThroughputLogger
from layershuffle.training.module import PAPER_ADAM, FineTuner, position_cross_entropy

PLAIN, OURS = "timm, eager, in sequence", "ours, compiled"
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
            raise RuntimeError(error)

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
    quieten()
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
    quieten()
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

    def ours(
        compile: bool,
        position: Any = "none",
        sampler: OrderSampler = Shuffle(),  # noqa: B008
    ) -> tuple[FineTuner, Loop]:
        module = FineTuner(name, 10, position=position, sampler=sampler, compile=compile, timm_args=timm_args).to(
            device
        )
        images = module.preprocess(raw)

        def loss(step: int) -> Tensor:
            output = module.model(images, module.draw(step))
            total = F.cross_entropy(output.logits, labels)
            if output.position_logits is not None:
                total = total + position_cross_entropy(output.position_logits).sum()
            return total

        fused = torch.optim.Adam(module.model.parameters(), **PAPER_ADAM, fused=True)
        return module, Loop(module.model, loss, autocast, fused)

    module, eager = ours(False)
    images = module.preprocess(raw)
    vit: Any = timm.create_model(name, num_classes=10, **timm_args).to(device)

    def plain_loop(model: nn.Module, forward: Callable[[int], Tensor]) -> Loop:
        optimizer = torch.optim.Adam(model.parameters(), **PAPER_ADAM)
        return Loop(model, lambda step: F.cross_entropy(forward(step), labels), autocast, optimizer)

    steps: dict[str, Any] = {PLAIN: plain_loop(vit, lambda step: vit(images))}
    if precision == "auto":
        precision = "bf16-mixed" if device.type == "cuda" else fastest_precision(steps[PLAIN], device)
    forwards: dict[str, Callable[[], object]] = {PLAIN: lambda: vit(images)}
    try:
        face = HuggingFace(width, depth, heads, ratio_of_mlp * width, size, patch, channels).to(device)
        steps["Hugging Face, permuted by hand"] = plain_loop(face, lambda step: face(images, shuffled(depth, step)))
        forwards["Hugging Face, permuted by hand"] = lambda: face(images, shuffled(depth, random.randrange(10**6)))
    except ImportError:
        print('Hugging Face is left out: pip install "layershuffle[benchmarks]"')
    steps["ours, eager"] = eager
    forwards["ours, eager"] = lambda: module.model(images, module.draw(random.randrange(10**6)))
    compiled, steps[OURS] = ours(True)
    forwards[OURS] = lambda: compiled.model(images, compiled.draw(random.randrange(10**6)))
    steps["ours, compiled, position encoded"] = ours(True, "encode")[1]
    steps["ours, compiled, position predicted"] = ours(True, "predict")[1]
    steps["ours, compiled, LayerDrop 0.2"] = ours(True, sampler=LayerDrop(0.2))[1]
    steps["ours, compiled, by train.py"] = TrainingRun(
        model={"name": name, "num_classes": 10, "timm_args": timm_args},
        batch=(raw.cpu(), labels.cpu()),
        device=args.device,
        precision=precision,
        folder=scratch.name,
    )

    first, compiled_graphs = {}, {}
    for contender, step in steps.items():
        before = graphs()
        first[contender] = seconds(step, device)
        compiled_graphs[contender] = None if isinstance(step, TrainingRun) else graphs() - before
    rounds = args.rounds or 20
    before = graphs()
    repeats = 1 if full and device.type == "cpu" else 5
    times = take_turns(steps, rounds, device, warm_up=2, repeats=repeats)
    assert graphs() == before, "an order added a graph"

    trained = vit.state_dict()  # same weights for all: with some, numbers become so small that a CPU slows down
    module.model.vit.load_state_dict(trained)
    compiled.model.vit.load_state_dict(trained)
    with torch.inference_mode(), autocast():
        for model in (vit, module, compiled, *([face] if len(forwards) == 4 else [])):
            model.eval()
        forward_times = take_turns(forwards, rounds, device, warm_up=2, repeats=repeats)

    work: dict[str, float] = {}
    memory: dict[str, int | None] = {}
    for contender, step in steps.items():
        if isinstance(step, Loop):
            step.optimizer.zero_grad()  # so that the gradients count
            memory[contender] = peak_memory(step, device)
        else:
            memory[contender] = None
    with torch.compiler.set_stance("force_eager"):
        for contender, step in steps.items():
            if isinstance(step, Loop):
                step.step, several = 0, rounds if "LayerDrop" in contender else 1  # its mean over the steps timed
                work[contender] = flops(lambda step=step, n=several: [step() for _ in range(n)]) / several / batch  # type: ignore
    work["ours, compiled, by train.py"] = work[OURS]
    if args.whole:
        whole = ByHand(timm.create_model(name, num_classes=10, **timm_args)).to(device)
        forward = torch.compile(whole, dynamic=False)
        loop = plain_loop(whole, lambda step: forward(images, shuffled(depth, step)))
        contender, before = f"torch.compile of the whole, {args.whole} orders", graphs()
        took = [seconds(loop, device) for _ in range(args.whole)]
        first[contender], compiled_graphs[contender] = took[0], graphs() - before
        times[contender], memory[contender], work[contender] = took, None, work[PLAIN]
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
                "forward images/s": batch / statistics.median(forwarded) if forwarded else None,
                "to timm ": _ratio(forward_times, contender, PLAIN) if forwarded else None,
                "peak MB": None if memory[contender] is None else (memory[contender] or 0) / 2**20,
                "first step s": first[contender],
                "graphs": compiled_graphs[contender],
            }
        )
    report("step", rows, device, setting, args.output)


def _ratio(times: Times, of: str, to: str) -> float:
    if len(times[of]) == len(times[to]):
        return ratio(times, of, to)
    return statistics.median(times[to]) / statistics.median(times[of])


if __name__ == "__main__":
    main()
