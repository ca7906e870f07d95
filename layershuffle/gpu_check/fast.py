"""Is the package as fast on the GPU as it should be?"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch.nn import functional as F
from torch.profiler import DeviceType, ProfilerActivity

from layershuffle.api.train import train
from layershuffle.data.pack_index import PackedSplit, PackIndex, records_file, write_index
from layershuffle.files import read_json, write_whole
from layershuffle.gpu_check.checks import CannotCheckError, Outcome, Setting, check, environment, new_folder, require
from layershuffle.gpu_check.roofline import CAUTIOUS, LIMIT, Gpu, Shape, estimate, forward_kernels, step_kernels
from layershuffle.hardware import memory_bandwidth, wait

OURS = "ours, compiled"
BATCH = 128
MAX_LOST = 0.03
"""The share of the bare step's speed that reading the images and logging may take."""


@check(
    "step-128",
    "fast",
    "A compiled ViT-B/16 at 224 in bf16 with batches of 128 is at least as fast, in training and forward, as the GPU's "
    "roofline estimates with caution; how much slower the other methods are, and how fast timm, Hugging Face and a "
    "model that is compiled as a whole for one fixed order are.",
    seconds=360,
    quick_seconds=120,
    needs_gpu=True,
)
def step_128(setting: Setting) -> Outcome:
    """Run benchmarks/step.py, and compare with the roofline."""
    bandwidth = memory_bandwidth(setting.device)
    if not bandwidth:
        raise CannotCheckError("the driver doesn't tell how fast the GPU's memory is, so there is no goal")
    arguments = [f"--batch={BATCH}", "--precision=bf16-mixed", "--rounds=4", "--whole=0", "--without=*by train.py"]
    if setting.quick:
        arguments += ["--only", OURS]
    # The kernels that other checks have compiled are used again, which saves a minute.
    if "TORCHINDUCTOR_CACHE_DIR" in os.environ:
        arguments.append(f"--cache={os.environ['TORCHINDUCTOR_CACHE_DIR']}")
    report = benchmark(setting, "step", *arguments)
    rows = {row["contender"]: row for row in report["rows"]}
    # If our training doesn't fit into the memory, the benchmark runs each layer again in the backward pass, and calls
    # it by another name.
    ours = rows.pop(OURS, None) or rows.pop(f"{OURS}, layers run again")

    ceiling = 1e9 * report["setting"]["ceiling in GFLOP/s"]
    gpu = Gpu(ceiling, bandwidth)
    training = beside_the_roofline("training", ours["images/s"], ours["of ceiling"], gpu)
    forward = beside_the_roofline("forward", ours["forward images/s"], ours["forward of ceiling"], gpu)
    figure = (
        f"{ours['contender']}: {training.figure}, {forward.figure}; the ceiling is {ceiling / 1e12:.0f} TFLOP/s; "
        f"{ours['peak MB'] / 1000:.0f} GB for activations"
    )
    if rows:
        ratios = []
        for name, row in rows.items():
            ratio = ours["images/s"] / row["images/s"]
            ratios.append(f"{ratio:.2f} of {name}")
        figure += f"; speed beside others: {', '.join(ratios)}"
    missed = " and ".join(part.missed for part in (training, forward) if part.missed)
    return Outcome(figure, missed, {**report, "roofline": {**training.details, **forward.details}})


def beside_the_roofline(part: Literal["training", "forward"], speed: float, share: float, gpu: Gpu) -> Outcome:
    """How a measured speed compares with the limit of the roofline, and with its cautious estimate, which is the goal.

    Args:
        part: what was measured.
        speed: images per second.
        share: the FLOP/s at this speed, as a share of those of the GPU's fastest matrix product.
        gpu: the GPU that was measured.
    """
    kernels = step_kernels(Shape(batch=BATCH))
    if part == "forward":
        kernels = forward_kernels(Shape(batch=BATCH))
    limit = estimate(kernels, BATCH, gpu, LIMIT).images_per_second
    goal = estimate(kernels, BATCH, gpu, CAUTIOUS).images_per_second
    figure = f"{speed:,.0f} images/s {part} ({share:.0%} of the ceiling, {speed / limit:.0%} of the roofline's limit)"
    missed = f"{part} reaches {speed:,.0f} images/s, not {goal:,.0f}" if speed < goal else ""
    details = {"bandwidth": gpu.bandwidth, "limit images/s": limit, "goal images/s": goal}
    return Outcome(figure, missed, {part: details})


def benchmark(setting: Setting, name: str, *arguments: str) -> dict[str, Any]:
    """What one of the benchmarks in ``benchmarks/`` reports of ViT-B/16."""
    if not (Path(__file__).parents[2] / "benchmarks").is_dir():
        raise CannotCheckError("run it from a checkout, which has benchmarks/")
    output = new_folder() / "report.json"
    options = ["--size=full", f"--device={setting.device}", f"--output={output}", *arguments]
    variables = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **environment()}
    done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], env=variables, check=False)
    require(done.returncode == 0, f"benchmarks.{name} ended with the code {done.returncode}: see the log")
    report: dict[str, Any] = read_json(output)
    return report


@check(
    "end-to-end",
    "fast",
    "`layershuffle train` on packed images is within 3% as fast as a bare training step on images that are on the GPU, "
    "and the GPU is hardly ever idle.",
    seconds=150,
    needs_gpu=True,
)
def end_to_end(setting: Setting) -> Outcome:
    """Train on packed noise, and compare with a bare loop."""
    batch = 128 if setting.is_gpu else 8
    size = 224 if setting.is_gpu else 32
    steps = StepTimer.WARM + StepTimer.TIMED + StepTimer.PROFILED
    folder = new_folder()
    # One batch more than the steps need, in ten classes of the same size.
    images_per_class = math.ceil((steps + 1) * batch / 10)
    pack_noise(folder / "packed", 10 * images_per_class, size)
    options: dict[str, Any] = {
        "data.root": str(folder / "packed"),
        "model.pretrained": False,
        "trainer.limit_val_batches": 0,
        "trainer.default_root_dir": str(folder),
        "trainer.callbacks+": "layershuffle.gpu_check.fast.StepTimer",
    }
    if not setting.is_gpu:
        options["model.timm_args"] = {"img_size": 32, "embed_dim": 64, "num_heads": 1, "depth": 2}
    train(
        "vit_b16",
        "imagenet_packed",
        "layershuffle",
        trainer=setting.trainer,
        batch_size=batch,
        max_steps=steps,
        folder=folder / "run",
        options=options,
    )
    speeds = read_json(folder / StepTimer.FILE)
    share = speeds["training"] / speeds["bare"]
    figure = f"{speeds['training']:,.0f} images/s, {share:.1%} of {speeds['bare']:,.0f}; GPU idle {speeds['idle']:.1%}"
    missed = "" if share >= 1 - MAX_LOST else f"{1 - share:.1%} is lost, more than {MAX_LOST:.0%}"
    return Outcome(figure, missed, speeds)


class StepTimer(pl.Callback):
    """Times steps of a training, records in further steps when the GPU works, and then times bare training steps.

    It writes ``timed.json`` to the trainer's root: images/s of the training and of the bare steps, and the idle share.
    """

    FILE = "timed.json"
    # The numbers of steps of each kind, in this sequence.
    WARM = 15
    TIMED = 60
    PROFILED = 50

    def __init__(self) -> None:
        self.profile: Any = None
        self.speeds: dict[str, float] = {}
        self.start = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called after every step, whose number counts from one."""
        step = trainer.global_step
        device = pl_module.device
        if step == self.WARM:
            # The first steps compile the layers and fill the queues.
            wait(device)
            self.start = time.perf_counter()
        elif step == self.WARM + self.TIMED:
            # Profiling takes time, so it begins only after the steps that are timed.
            wait(device)
            self.speeds["training"] = self.TIMED * len(batch[1]) / (time.perf_counter() - self.start)
            self._start_profile(device)
        elif step == self.WARM + self.TIMED + self.PROFILED:
            wait(device)
            self.speeds["idle"] = self._idle_share(device)
            self.speeds["bare"] = self._bare_speed(trainer, pl_module, *batch)
            write_whole(Path(trainer.default_root_dir) / self.FILE, json.dumps(self.speeds))

    def _start_profile(self, device: torch.device) -> None:
        """Begin to record when the device works."""
        activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
        self.profile = torch.profiler.profile(activities=[activity])
        self.profile.start()

    def _idle_share(self, device: torch.device) -> float:
        """The share of the profiled time in which the device had nothing to do."""
        self.profile.stop()
        kind = DeviceType.CUDA if device.type == "cuda" else DeviceType.CPU
        events = self.profile.profiler.kineto_results.events()
        # Annotations are left out: they last as long as what they describe, whether the device works or not.
        work = [event for event in events if event.device_type() == kind and not event.is_user_annotation()]
        return idle_share((event.start_ns(), event.end_ns()) for event in work)

    def _bare_speed(self, trainer: pl.Trainer, module: Any, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Images per second of the same training steps in the simplest loop, with one batch that is on the device."""
        optimizer = trainer.optimizers[0]
        is_bf16 = trainer.precision == "bf16-mixed"
        # The steps with negative numbers warm up.
        for number in range(-self.WARM, self.TIMED):
            if number == 0:
                wait(module.device)
                start = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast(module.device.type, torch.bfloat16, enabled=is_bf16):
                logits = module.model(images, module.orders.sample(number)).logits
                loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
        wait(module.device)
        return self.TIMED * len(labels) / (time.perf_counter() - start)


def idle_share(spans: Iterable[tuple[int, int]]) -> float:
    """The share of the time from the first start to the last end that none of the spans (start, end) covers."""
    # Spans overlap where kernels of several streams do. Sorted by their starts, there is a gap before a span if all
    # earlier ones have ended when it starts.
    ordered = sorted(spans)
    first_start = ordered[0][0]
    last_end = first_start
    idle = 0
    for start, end in ordered:
        idle += max(0, start - last_end)
        last_end = max(last_end, end)
    return idle / (last_end - first_start)


def pack_noise(folder: Path, count: int, size: int) -> None:
    """Write a packed set of ``count`` training images of noise, and ten for validation, in ten classes.

    Args:
        folder: a new folder.
        count: a multiple of ten.
        size: the height and width of the images, in pixels.
    """
    folder.mkdir(parents=True)
    # The same hundred images come over and over. Only the time to read them matters.
    image_bytes = 3 * size * size
    noise = torch.randint(256, (100 * image_bytes,), dtype=torch.uint8).numpy().data
    splits = {}
    for split, images in {"train": count, "val": 10}.items():
        with records_file(folder, split).open("wb") as file:
            for first in range(0, images, 100):
                file.write(noise[: min(100, images - first) * image_bytes])
        splits[split] = PackedSplit(classes={str(number): images // 10 for number in range(10)})
    write_index(folder, PackIndex("noise", size, splits))
