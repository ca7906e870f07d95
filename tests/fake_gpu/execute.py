"""Executes runs on the fake GPU, which this process has preloaded, and prints what was noted: a line of JSON each.

Usage: python -m fake_gpu.execute NAME ...
"""

import contextlib
import io
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from fake_gpu.runs import (
    BATCHES,
    CHECKS,
    CHOOSING,
    COMPILED,
    EVALUATIONS,
    FAULTS,
    NODE,
    NODE_STEPS,
    STEPS,
    TRAININGS,
)
from fake_gpu.watch import Watch
from fake_gpu.watched_steps import WatchSteps
from torch import Tensor

from layershuffle.commands.logs import set_up_logging
from layershuffle.commands.train import train_command
from layershuffle.data import Glyphs
from layershuffle.evaluation.by_class import ByClass
from layershuffle.evaluation.device import make_fabric
from layershuffle.evaluation.scoring import evaluate
from layershuffle.gpu_check.checks import Setting
from layershuffle.gpu_check.waits import waits
from layershuffle.models import create_model
from layershuffle.models.choice import OrderChoice
from layershuffle.orders.named import permutation
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.protocols import Trial
from layershuffle.serving.held_steps import HeldSteps
from layershuffle.serving.model_parts import part_for
from layershuffle.serving.wire import pack
from layershuffle.training import non_finite
from layershuffle.training.module import FineTuner
from layershuffle.training.non_finite import FirstNonFiniteLoss

count_chosen = OrderChoice.count


def training(watch: Watch, *words: str) -> None:
    """Train in ten steps, with the progress bar, clipping and a schedule."""
    WatchSteps.watch = watch
    configs = [word for word in words if not word.startswith("--")]
    options = [word for word in words if word.startswith("--")]
    command = ["mini_glyphs", "glyphs", "gpu", "mini", *configs]
    command += ["--model.pretrained=false", "--model.compile=false", "--model.schedule.warmup_steps=5"]
    command += ["--model.timm_args.depth=4"]
    command += ["--data.classes=10", "--data.images_per_class=60", "--data.test_images_per_class=12"]
    command += ["--data.batch_size=24", "--data.eval_batch_size=12", "--trainer.log_every_n_steps=1000"]
    command += [f"--trainer.max_steps={STEPS}", f"--trainer.val_check_interval={STEPS}"]
    command += [f"--trainer.limit_val_batches={BATCHES}", "--trainer.callbacks+=fake_gpu.watched_steps.WatchSteps"]
    command += [f"--trainer.default_root_dir={tempfile.mkdtemp()}", *options]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_command(command)


def faulty(run: Callable[[], object], fault: str) -> None:
    """Execute a run with a fault in every training step."""
    training_step = FineTuner.training_step

    def faulty_step(tuner: FineTuner, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        loss = training_step(tuner, batch, index)
        if fault == "item":
            loss.item()
        if fault == "synchronize":
            torch.cuda.synchronize()
        if fault == "float32":
            with torch.autocast("cuda", enabled=False):
                _ = batch[0].flatten(1) @ batch[0].flatten(1).T
        if fault == "pageable":
            torch.ones(100_000).to(loss.device, non_blocking=True)
        if fault == "other device":
            loss = loss + torch.ones(2).sum(dim=0, keepdim=True)
        return loss

    FineTuner.training_step = faulty_step
    try:
        run()
    finally:
        FineTuner.training_step = training_step


def check_waits() -> None:
    """Make the check of ``check-gpu``; it raises an error if a training waits."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        waits(Setting(torch.device("cuda", 0)))


def evaluation(watch: Watch, kind: str) -> None:
    """Evaluate fixed orders, a new one for each batch, and classes, in bf16."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 4}
    orders = [Order(text) for text in ("0 1 2 3", "0a 1f (2|3)*2", "(0+1+2) 3", "3 0 1<1 2<2")]
    arbitrary: list[Trial] = [Trial("arbitrary", None)]
    if kind == "choices":
        model = create_model("vit_tiny_patch16_224", 10, choices=["0 1 2 3", "3 2 1 0"], **shape)
        arbitrary = [Trial("instancewise", pick) for pick in ("chosen", "oracle")]
    else:
        model = create_model("vit_tiny_patch16_224", 10, position=kind, positions=8, **shape)
    orders += [permutation(4, seeded(number)) for number in range(3)]
    given = [Trial("given", order) for order in dict.fromkeys(orders)]

    data = Glyphs(classes=10, test_images_per_class=12, batch_size=120 // BATCHES)
    data.device = torch.device("cuda", 0)
    preprocess = data.prepare_for(*model.image_format)
    data.setup("test")
    by_class = ByClass(given, 10).to("cuda")
    fabric = make_fabric("cuda", "bf16-mixed", model)
    batches = WatchedBatches(data.loader("test"), watch)
    # The device has counted no images, which is found out after the last batch.
    with contextlib.suppress(ZeroDivisionError):
        evaluate(model, preprocess, batches, [*given, *arbitrary], fabric, on_output=by_class.add)


def node(watch: Watch) -> None:
    """Run steps on a node of a cluster, as they come and go over the network."""
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": NODE_STEPS}
    model = create_model("vit_tiny_patch16_224", 10, position="encode", **shape).eval()
    held = HeldSteps(device="cuda")
    for index, step in enumerate(model.order):
        held.hold(index, part_for(model, step), step)
    tokens = pack(model.embed(torch.rand(1, 3, 32, 32)).tokens.detach().numpy(), "float32")
    watch.begin()
    for index in range(NODE_STEPS):
        tokens = held.run(tokens, None, [index], index, "float32")
    watch.end()


class WatchedBatches:
    """Batches, of which all but the first are watched."""

    def __init__(self, loader: Iterable[Any], watch: Watch) -> None:
        self.loader = loader
        self.watch = watch

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.loader):
            if number == 1:
                self.watch.begin()
            yield batch
        self.watch.end()


def all_runs() -> dict[str, Callable[[Watch], None]]:
    """All runs by their names."""
    runs: dict[str, Callable[[Watch], None]] = {}
    for name, words in {**TRAININGS, **CHOOSING, **COMPILED}.items():
        runs[name] = lambda watch, words=words: training(watch, *words)  # type: ignore[misc]
    for fault in FAULTS:
        runs[fault] = lambda watch, fault=fault: faulty(lambda: training(watch), fault)  # type: ignore[misc]
    for name, fault in CHECKS.items():
        runs[name] = lambda watch, fault=fault: faulty(check_waits, fault)  # type: ignore[misc]
    runs[NODE] = node
    for kind in EVALUATIONS:
        runs[f"evaluation, {kind}"] = lambda watch, kind=kind: evaluation(watch, kind)  # type: ignore[misc]
    return runs


def expect_nonsense() -> None:
    """Prepare for values that no kernel has computed: they needn't be finite."""
    FirstNonFiniteLoss.read = lambda losses: None  # type: ignore[method-assign]
    non_finite.all_finite = lambda parameters: True
    OrderChoice.count = count_all_as_first  # type: ignore[method-assign]
    # cuDNN isn't there.
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(False)


def count_all_as_first(choice: OrderChoice, chosen: Tensor) -> Tensor:
    """Count the choices, but say that all images choose the first order: they must be as many as there are."""
    counts = torch.zeros_like(count_chosen(choice, chosen), device="cpu")
    counts[0] = len(chosen)
    # Unlike kernels, copies are real.
    return counts.pin_memory().to(chosen.device, non_blocking=True)


def main(names: list[str]) -> None:
    """Execute the runs of these names."""
    set_up_logging()
    expect_nonsense()
    runs = all_runs()
    for name in names:
        watch = Watch()
        start = time.perf_counter()
        try:
            runs[name](watch)
        except Exception as error:
            watch.events.error = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            traceback.print_exc()
        # Lightning leaves that to the end of the process.
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        seconds = round(time.perf_counter() - start, 1)
        print(json.dumps({"name": name, "seconds": seconds, **watch.as_dict()}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
