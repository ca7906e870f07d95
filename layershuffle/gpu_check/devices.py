"""Are the memory, the precision and several GPUs used as they should be?"""

import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from layershuffle.api.train import as_options
from layershuffle.data import Glyphs
from layershuffle.evaluation.device import MAX_IMAGES, largest_evaluation_batch, make_fabric
from layershuffle.gpu_check.checks import Outcome, Setting, check, environment, logged, new_folder, require, train_small
from layershuffle.gpu_check.correct import FAMILIES, distance, random_model
from layershuffle.hardware import seconds
from layershuffle.private_apis import precision_of

MEMORY = 3 << 30
"""The bytes of the GPU's memory that the check ``memory`` uses."""
MAX_LOSS_DISTANCE = 1e-3
"""How far the losses of two ways to train may be apart: the norm of the difference over the norm."""
SHARDED = "trainer.strategy.data_parallel_size"
"""The option that says over how many processes FSDP shards the model."""


@check(
    "memory",
    "correct",
    "`--batch_size auto` finds a larger batch that fits into a part of the memory.",
    seconds=60,
    needs_gpu=True,
)
def memory(setting: Setting) -> Outcome:
    """Look for the largest batch in 3 GB."""
    # The GPU is made to look small, so that the search ends below MAX_IMAGES.
    total = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.set_per_process_memory_fraction(MEMORY / total, setting.device)
    smallest = 32
    model = random_model(setting)
    data = Glyphs(classes=10, test_images_per_class=400, eval_batch_size=smallest)
    data.device = setting.device
    data.prepare_for(*model.image_format)
    data.setup("test")
    fabric = make_fabric(setting.device.type, "32-true", model)
    batch = largest_evaluation_batch(model, data, "test", fabric)
    require(smallest < batch < MAX_IMAGES, f"the batch has {batch} images, not between {smallest} and {MAX_IMAGES}")
    return Outcome(f"{batch} images fit into 3 GB")


@check(
    "precision",
    "correct",
    "`--precision auto` chooses the faster precision for ViT-B/16, and on a GPU this is bf16.",
    seconds=60,
)
def precision(setting: Setting) -> Outcome:
    """Measure both precisions, and compare with the choice."""
    model = random_model(setting, "vit_base_patch16_224" if setting.is_gpu else FAMILIES[0])
    chosen = precision_of(make_fabric(setting.device.type, "auto", model))
    model.to(setting.device)
    batch = 256 if setting.is_gpu else 8
    images = torch.randn(batch, *model.image_shape, device=setting.device)
    # The choice is checked by another measurement. The first run loads the kernels, which hardly changes the median.
    times = {}
    for name in ("32-true", "bf16-mixed"):
        is_bf16 = name == "bf16-mixed"
        with torch.inference_mode(), torch.autocast(setting.device.type, torch.bfloat16, enabled=is_bf16):
            runs = [seconds(lambda: model(images), setting.device) for _ in range(7)]
        times[name] = statistics.median(runs)
    other = "32-true" if chosen == "bf16-mixed" else "bf16-mixed"
    ratio = times[other] / times[chosen]
    # If both take about the same time, the next measurement may find the other one faster. So 10% are allowed.
    require(ratio > 0.9, f"{chosen} was chosen, which takes {1 / ratio:.2f} times as long as {other}")
    require(chosen == "bf16-mixed" or not setting.is_gpu, f"{chosen} was chosen: bf16 is not faster on this GPU")
    return Outcome(f"{chosen}, {ratio:.2g} times as fast as {other}")


@check(
    "processes",
    "correct",
    "DDP and FSDP learn what a single process learns, and with several GPUs, FSDP learns on all of them what DDP does "
    "if all run the same orders.",
    seconds=180,
)
def processes(setting: Setting) -> Outcome:
    """Train in one process with each strategy, and on all GPUs if there are several."""
    # With one process, each strategy has to compute the same as no strategy.
    alone = _losses_in_this_process(setting)
    ddp = _compare("DDP", _losses_in_this_process(setting, "ddp"), alone)
    fsdp = _compare("FSDP", _losses_in_this_process(setting, "fsdp", {SHARDED: 1}), alone)
    figure = f"one process: the losses differ by at most {max(ddp, fsdp):.1e}"
    # With FSDP all processes run the same order, because they exchange the weights of each layer. With DDP each process
    # runs an order of its own, unless it is told not to, as here.
    count = torch.cuda.device_count()
    if count > 1:
        with_ddp = _losses_on_all_gpus("ddp", count, {"model.orders_per_process": False})
        with_fsdp = _losses_on_all_gpus("fsdp", count, {SHARDED: count})
        difference = _compare(f"FSDP on {count} GPUs", with_fsdp, with_ddp)
        figure += f"; {count} GPUs: by {difference:.1e}"
    return Outcome(figure)


def _options(devices: int) -> dict[str, Any]:
    """What all trainings of this check have in common."""
    return {
        "data.images_per_class": 40,
        "trainer.max_epochs": 2,
        "trainer.gradient_clip_val": None,
        "trainer.precision": "32-true",
        "trainer.log_every_n_steps": 1,
        "trainer.devices": devices,
        "model.compile": False,
    }


def _losses_in_this_process(setting: Setting, strategy: str | None = None, more: Mapping[str, Any] = {}) -> Tensor:
    """The losses of a training in this process.

    Args:
        setting: the device.
        strategy: the name of a trainer's config, by default the one without a strategy.
        more: further options, which win over those that all trainings have in common.
    """
    options = {**_options(devices=1), "trainer.accelerator": setting.trainer, **more}
    run = train_small(setting, trainer=strategy or setting.trainer, options=options)
    # Lightning leaves the process group to the end of the process, and the next training makes a new one.
    if distributed.is_initialized():
        distributed.destroy_process_group()
    return _losses(run.folder)


def _losses_on_all_gpus(strategy: str, count: int, more: Mapping[str, Any]) -> Tensor:
    """The losses of a training in a process for each GPU."""
    folder = new_folder()
    options = {
        **_options(devices=count),
        "model.pretrained": False,
        "data.classes": 10,
        "data.test_images_per_class": 10,
        "trainer.logger.save_dir": str(folder),
        "trainer.logger.version": "run",
        **more,
    }
    # Without torchrun, Lightning would start a process for each GPU with the command of this very process, and so make
    # the check again in each of them.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    training = ["-m", "layershuffle", "train", "mini_glyphs", "glyphs", "gpu", "mini", strategy, *as_options(options)]
    done = subprocess.run([*torchrun, *training], env=environment(), check=False)
    require(done.returncode == 0, f"{strategy} on {count} GPUs ended with the code {done.returncode}: see the log")
    return _losses(folder / "run")


def _losses(folder: Path) -> Tensor:
    """All losses that a run has logged, as float32 [losses]."""
    losses = logged(folder, "train/loss") + logged(folder, "val/loss")
    require(len(losses) > 4, f"the run in {folder} has logged too little")
    return torch.tensor(losses)


def _compare(name: str, losses: Tensor, expected: Tensor) -> float:
    """The ``distance`` of losses from the expected ones; raises WrongResultError if it is too large."""
    value = distance(losses, expected)
    require(value < MAX_LOSS_DISTANCE, f"the losses of {name} differ by {value:.1e}")
    return value
