"""Is the package as fast on the GPU as it should be?"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.nn import functional as F
from torch.profiler import DeviceType, ProfilerActivity

from layershuffle.data.packed import FORMAT, records_file, write_index
from layershuffle.files import read_json, write_whole
from layershuffle.gpu_check.checks import Found, LeftOut, Setting, check, environment, new_folder, require
from layershuffle.hardware import wait

OURS = "ours, compiled"
GOAL = 0.6
"""The share of the fastest matrix product's speed that the compiled step should reach, in training and forward."""
LOST = 0.03
"""The share of the bare step's speed that reading the images and logging may take."""


def benchmark(setting: Setting, name: str, *arguments: str) -> dict[str, Any]:
    """What one of the benchmarks in ``benchmarks/`` reports of ViT-B/16."""
    if not (Path(__file__).parents[2] / "benchmarks").is_dir():
        raise LeftOut("run it from a checkout, which has benchmarks/")
    variables = environment()
    output = new_folder() / "report.json"
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{name}",
        "--size=full",
        f"--device={setting.device}",
        f"--output={output}",
    ]
    done = subprocess.run(
        [*command, *arguments], env={"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"} | variables
    )
    require(done.returncode == 0, f"benchmarks.{name} ended with the code {done.returncode}: see the log")
    return read_json(output)


def step(setting: Setting, batch: int) -> Found:
    """Train and evaluate ViT-B/16 beside the alternatives, with batches of ``batch`` images."""
    arguments = [f"--batch={batch}", "--precision=bf16-mixed", "--rounds=4", "--whole=0", "--without=*by train.py"]
    arguments += ["--only", OURS] if setting.quick else []
    arguments += [f"--cache={os.environ['TORCHINDUCTOR_CACHE_DIR']}"] if "TORCHINDUCTOR_CACHE_DIR" in os.environ else []
    report = benchmark(setting, "step", *arguments)
    rows = {row["contender"]: row for row in report["rows"]}
    ours = rows.get(OURS) or rows[f"{OURS}, layers run again"]
    shares = {"training": ours["of ceiling"], "forward": ours["forward of ceiling"]}
    ceiling = report["setting"]["ceiling in GFLOP/s"]
    figure = (
        f"{ours['contender']}: {ours['images/s']:,.0f} images/s training ({shares['training']:.0%} of the ceiling of "
        f"{ceiling / 1000:.0f} TFLOP/s), {ours['forward images/s']:,.0f} forward ({shares['forward']:.0%}), "
        f"{ours['peak MB'] / 1000:.0f} GB for activations"
    )
    beside = [f"{ours['images/s'] / row['images/s']:.2f} of {name}" for name, row in rows.items() if row is not ours]
    figure += f"; speed beside others: {', '.join(beside)}" if beside else ""
    slow = [f"{name} reaches {share:.0%} of the ceiling" for name, share in shares.items() if share < GOAL]
    return Found(figure, f"{' and '.join(slow)}, not {GOAL:.0%}" if slow else "", report)


@check("fast", seconds=360, quick=120, gpu=True)
def step_128(setting: Setting) -> Found:
    """A compiled ViT-B/16 at 224 in bf16 with batches of 128 reaches 60% of the speed of the GPU's fastest matrix
    product, in training and forward; how much slower the other methods are, and how fast timm, Hugging Face and a model
    that is compiled as a whole for one fixed order are."""
    return step(setting, 128)


@check("fast", seconds=420, gpu=True)
def step_640(setting: Setting) -> Found:
    """The same with the paper's batches of 640, and their memory; layers are run again for their gradients if they
    would not fit."""
    return step(setting, 640)


@check("fast", seconds=240, gpu=True)
def many_orders(setting: Setting) -> Found:
    """Scoring many orders together is as many times as fast as one by one as it runs fewer layers, or at most a tenth
    less, and finds the same."""
    families = ["all in-order subsets", "random permutations"]
    report = benchmark(
        setting, "evaluation", "--compile", "--batch=256", "--images=256", "--rounds=1", "--families", *families
    )
    rows = report["rows"]
    figure = "; ".join(
        f"{r['count']:,} {r['orders']}: {r['times as fast']:.2f} times as fast, {r['seconds together']:.1f} s"
        for r in rows
    )
    slow = [row["orders"] for row in rows if row["times as fast"] < 0.9 * row["times fewer"]]
    return Found(figure, f"{' and '.join(slow)} gain less than they run fewer layers" if slow else "", report)


class Timed(pl.Callback):
    """Times steps of a training, notes in further steps when the GPU works, and then times bare steps by hand.

    It writes ``timed.json`` to the trainer's root: images/s of the training and of the bare steps, and the idle share.
    """

    WARM, TIMED, PROFILED = 15, 60, 50

    def __init__(self) -> None:
        self.profile: Any = None
        self.found: dict[str, float] = {}
        self.since = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after every step, whose number counts from one."""
        step, device, count = trainer.global_step, pl_module.device, len(batch[1])
        if step == self.WARM:
            wait(device)
            self.since = time.perf_counter()
        elif step == self.WARM + self.TIMED:
            wait(device)
            self.found["training"] = self.TIMED * count / (time.perf_counter() - self.since)
            activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
            self.profile = torch.profiler.profile(activities=[activity])
            self.profile.start()
        elif step == self.WARM + self.TIMED + self.PROFILED:
            wait(device)
            self.profile.stop()
            kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
            events = self.profile.profiler.kineto_results.events()
            events = [event for event in events if event.device_type() == kind and not event.is_user_annotation()]
            self.found["idle"] = idle_share((event.start_ns(), event.end_ns()) for event in events)
            self.found["bare"] = self._bare(trainer, pl_module, *batch)
            write_whole(Path(trainer.default_root_dir) / "timed.json", json.dumps(self.found))

    def _bare(self, trainer: pl.Trainer, module: Any, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Images per second of the same steps in a loop of the fewest lines, on one batch that is on the device."""
        optimizer, bf16 = trainer.optimizers[0], trainer.precision == "bf16-mixed"
        for number in range(-self.WARM, self.TIMED):
            if number == 0:
                wait(module.device)
                since = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast(module.device.type, torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(module.model(images, module.orders.sample(number)).logits, labels)
            loss.backward()
            optimizer.step()
        wait(module.device)
        return self.TIMED * len(labels) / (time.perf_counter() - since)


def idle_share(spans: Iterable[tuple[int, int]]) -> float:
    """The share of the time from the first start to the last end in which none of the (start, end) lasts."""
    ordered = sorted(spans)
    first = reached = ordered[0][0]
    idle = 0
    for start, end in ordered:
        idle += max(0, start - reached)
        reached = max(reached, end)
    return idle / (reached - first)


def packed_noise(folder: Path, count: int, size: int) -> None:
    """Write a packed set of ``count`` training images of noise, and few for validation, in ten classes."""
    folder.mkdir(parents=True)
    splits = {"train": count, "val": 10}
    noise = torch.randint(256, (100 * 3 * size * size,), dtype=torch.uint8).numpy().data
    for split, images in splits.items():
        with records_file(folder, split).open("wb") as file:
            for first in range(0, images, 100):
                file.write(noise[: min(100, images - first) * 3 * size * size])
    classes = {split: {"classes": {str(n): images // 10 for n in range(10)}} for split, images in splits.items()}
    write_index(folder, FORMAT, {"name": "noise", "size": size, "splits": classes})


@check("fast", seconds=150, gpu=True)
def end_to_end(setting: Setting) -> Found:
    """`layershuffle train` on packed images is within 3% as fast as a bare training step on images that are on the GPU,
    and the GPU is hardly ever idle."""
    batch, size = (128, 224) if setting.cuda else (8, 32)
    steps, root = Timed.WARM + Timed.TIMED + Timed.PROFILED, new_folder()
    packed_noise(root / "packed", 10 * -(-(steps + 1) * batch // 10), size)
    model = [] if setting.cuda else ["--model.timm_args={img_size: 32, embed_dim: 64, num_heads: 1, depth: 2}"]
    setting.command(
        ["train", "vit_b16", "imagenet_packed", "layershuffle", "gpu" if setting.cuda else "cpu", *model]
        + [f"--data.root={root / 'packed'}", f"--data.batch_size={batch}", "--model.pretrained=false"]
        + [f"--trainer.max_steps={steps}", "--trainer.limit_val_batches=0", f"--trainer.default_root_dir={root}"]
        + ["--trainer.callbacks+=layershuffle.gpu_check.fast.Timed"]
    )
    found = read_json(root / "timed.json")
    share = found["training"] / found["bare"]
    figure = f"{found['training']:,.0f} images/s, {share:.1%} of {found['bare']:,.0f}; GPU idle {found['idle']:.1%}"
    return Found(figure, "" if share >= 1 - LOST else f"{1 - share:.1%} is lost, more than {LOST:.0%}", found)
