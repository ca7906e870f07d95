"""Does the package compute on the GPU what it should?"""

import copy
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as distributed
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten

from layershuffle.checkpoints.authors import load_reference
from layershuffle.config_files import known
from layershuffle.data import Glyphs
from layershuffle.evaluation.device import MOST_IMAGES, make_fabric
from layershuffle.evaluation.scoring import evaluate
from layershuffle.files import read_json
from layershuffle.gpu_check.checks import (
    Found,
    LeftOut,
    Setting,
    check,
    environment,
    metric,
    new_folder,
    require,
    training,
)
from layershuffle.hardware import seconds
from layershuffle.models import OrderedViT, create_model
from layershuffle.orders.named import parse_order, permutation, random_subset, sequential
from layershuffle.orders.order import Order, Unit, seeded
from layershuffle.orders.protocols import Trial
from layershuffle.training.module import FineTuner
from layershuffle.training.objectives.classification import position_cross_entropy

NEEDS_A_LOG = "method/recorded"
METHODS = tuple(path.stem for name, path in known().items() if name.startswith("method/") and name != NEEDS_A_LOG)
FAMILIES = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224")
LESSON = ("--data.images_per_class=400", "--trainer.max_epochs=5")
"""What a method is given to learn: about 300 steps, fewer of which tell methods that shuffle layers nothing."""
EXACT = 1e-4
"""How far float32 logits, of magnitude 1, may be from the CPU's."""
BF16 = 0.04
"""How far bf16 logits may be from float32 ones: the norm of the difference over the norm."""


def random_model(setting: Setting, name: str = FAMILIES[0], **arguments: Any) -> OrderedViT:
    """A model on the CPU whose weights are far from their initial symmetry, so that every order gives other logits."""
    torch.manual_seed(0)
    patch = 14 if "patch14" in name else 16
    size = {"img_size": (16 if setting.cuda else 2) * patch, "depth": 12 if setting.cuda else 4}
    model = create_model(name, 10, **size | arguments).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def distance(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm; infinite if there is NaN."""
    value = float((found.float().cpu() - expected).norm() / expected.norm())
    return value if value == value else float("inf")


def several(depth: int, count: int) -> list[Order]:
    """Orders of every kind: shuffled, cut, split in halves and with layers in parallel."""
    kinds: list[Callable[[Any], Order]] = [
        lambda rng: permutation(depth, rng),
        lambda rng: random_subset(1 + int(rng.random() * depth), depth, rng).shuffled(rng),
        lambda rng: parse_order("sublayers", sequential(depth)).shuffled(rng),
        lambda rng: Order([(Unit(0), Unit(2)), *sequential(depth)]).shuffled(rng),
    ]
    return [kind(seeded("check", at)) for at, kind in enumerate(islice(cycle(kinds), count))]


def exactly() -> Any:
    """Convolutions in float32 proper; matrix products are anyway."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@check("correct", seconds=60, quick=50)
@torch.inference_mode()
def logits(setting: Setting) -> Found:
    """A ViT, a distilled DeiT and an EVA-02 give the CPU's logits in random orders: within 1e-4 in float32, and within
    4% in bf16."""
    float32, bf16 = 0.0, 0.0
    for name in FAMILIES:
        model = random_model(setting, name)
        images, orders = torch.randn(4, *model.image_shape), several(model.depth, 6)
        expected = [model(images, order).logits for order in orders]
        model.to(setting.device)
        for order, logits in zip(orders, expected):
            with exactly():
                difference = model(images.to(setting.device), order).logits.cpu() - logits
            float32 = max(float32, float(difference.abs().max() / logits.abs().max().clamp(min=1)))
            require(float32 <= EXACT, f"{name} in the order {order}: the logits differ by {float32:.2g} in float32")
            with torch.autocast(setting.device.type, torch.bfloat16):
                bf16 = max(bf16, distance(model(images.to(setting.device), order).logits, logits))
            require(bf16 <= BF16, f"{name} in the order {order}: the logits differ by {bf16:.1%} in bf16")
    return Found(f"largest difference {float32:.1e} in float32, {bf16:.1%} in bf16")


@check("correct", seconds=240, quick=80)
def methods(setting: Setting) -> Found:
    """Every method of configs/method trains on this device in its precision, and its classification loss falls by a
    fifth."""
    falls = {}
    for method in METHODS[:: 4 if setting.quick else 1]:
        command, run = training(
            setting,
            *(*LESSON, "--trainer.limit_val_batches=1"),
            *("--trainer.log_every_n_steps=1", "--model.compile=false", "--model.pretrained=mini_glyphs"),
            configs=(method,),
        )
        setting.command(command)
        losses = metric(run, "train/classification_loss")
        falls[method] = 1 - statistics.fmean(losses[-5:]) / statistics.fmean(losses[:5])
        require(falls[method] >= 0.2, f"{method}: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
    least = min(falls, key=lambda method: falls[method])
    return Found(f"{len(falls)} methods; least: {least}, by {falls[least]:.0%}", details=falls)


@check("correct", seconds=200, quick=90)
def compiled(setting: Setting) -> Found:
    """Compiled layers give the logits and gradients of uncompiled ones, and after the first orders of each kind, 200
    orders in training and evaluation add no graph."""
    torch._dynamo.reset()
    torch._dynamo.config.recompile_limit = 1000  # at the limit, torch would stop compiling, and nothing would be added
    count = torch._dynamo.utils.counters["stats"]
    backend = {} if setting.cuda else {"backend": "aot_eager"}  # a CPU's compiler has nothing to do with a GPU's
    worst, graphs = 0.0, 0
    for position in ("none",) if setting.quick else ("none", "encode", "predict"):
        plain = random_model(setting, position=position, depth=4, positions=8, img_size=32).to(setting.device)
        model = copy.deepcopy(plain)
        model.compile(**backend)
        images, orders = torch.randn(8, *model.image_shape, device=setting.device), several(4, 200)
        labels = torch.arange(8, device=setting.device)

        def gradients(model: OrderedViT, order: Order, images: Tensor = images, labels: Tensor = labels) -> Tensor:
            model.train().zero_grad()
            output = model(images, order)
            loss = F.cross_entropy(output.logits, labels)
            if output.position_logits is not None:
                loss = loss + position_cross_entropy(output.position_logits).sum()
            loss.backward()
            return torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])

        def evaluated(model: OrderedViT, order: Order, images: Tensor = images) -> Tensor:
            with torch.inference_mode():
                return model.eval()(images, order).logits.cpu()

        before = count["unique_graphs"]
        with exactly():
            for order in orders[:4]:  # one of each kind
                for compute in (gradients, evaluated):
                    worst = max(worst, distance(compute(model, order), compute(plain, order)))
                require(worst <= 1e-3, f"compiled and uncompiled differ by {worst:.1e} in the order {order}")
            first = count["unique_graphs"]
            for order in orders:
                gradients(model, order)
                evaluated(model, order)
        require(first > before, "nothing was compiled")
        added = count["unique_graphs"] - first
        require(not added, f"{added} of 200 orders added a graph, with position {position}")
        graphs += first - before
    return Found(f"largest difference {worst:.1e}; {graphs} graphs, none of them added by 200 orders")


class NoWaiting(pl.Callback):
    """Makes torch raise an error if the host waits for the GPU in the steps from FIRST to LAST."""

    FIRST, LAST = 10, 110

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Switch it on and off; what comes in between, such as reading the next batch, counts."""
        if trainer.global_step in (self.FIRST, self.LAST):
            forbid_waiting(trainer.global_step == self.FIRST)


def forbid_waiting(on: bool) -> None:
    """Whether torch raises an error where the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error" if on else "default")


@check("correct", seconds=120, gpu=True)
def waiting(setting: Setting) -> Found:
    """In a hundred training steps that are not logged, and in an evaluation of 50 orders, the host never waits for the
    GPU."""
    try:
        last = NoWaiting.LAST + 5
        command, _ = training(
            setting,
            *("--data.images_per_class=200", "--data.batch_size=15", f"--trainer.max_steps={last}"),
            *("--trainer.log_every_n_steps=1000", "--trainer.limit_val_batches=0"),
            "--trainer.callbacks+=layershuffle.gpu_check.correct.NoWaiting",
        )
        setting.command(command)
        forbid_waiting(False)
        model, data = random_model(setting), Glyphs(classes=10, test_images_per_class=10, batch_size=25)
        data.device = setting.device
        preprocess = data.prepare_for(*model.image_format)
        data.setup("test")
        trials = [Trial("given", permutation(model.depth, seeded(draw))) for draw in range(50)]
        outputs = 0

        def watch(*_: Any) -> None:
            nonlocal outputs
            outputs += 1  # from the second order on, until the last one of the last batch has run
            forbid_waiting(outputs < expected)

        expected = len({trial.order for trial in trials}) * len(data.loader("test"))
        loader, fabric = data.loader("test"), make_fabric(setting.device.type, "32-true", model)
        evaluate(model, preprocess, loader, trials, fabric, on_output=watch)
        require(outputs == expected, f"{outputs} of {expected} outputs were watched")
    finally:
        forbid_waiting(False)
    return Found(f"{NoWaiting.LAST - NoWaiting.FIRST} steps and {outputs} outputs without a wait")


@check("correct", seconds=60)
def batches(setting: Setting) -> Found:
    """A data set that is kept on the GPU gives the batches of one in the host's memory, which are copied beside the
    computing."""
    module = FineTuner(FAMILIES[0], 10, timm_args={"img_size": 32, "depth": 1})
    count = 0
    loaders = []
    for on_device in (True, False):
        data = Glyphs(classes=10, images_per_class=200, batch_size=50, on_device=on_device)
        data.device = setting.device
        data.setup()
        torch.manual_seed(0)  # which decides the sequence of the images
        loaders.append([data.train_dataloader(), data.val_dataloader()])
    busy = torch.ones(4096 if setting.cuda else 64, device=setting.device).diag()
    for kept, copied in zip(*loaders, strict=True):
        for (images, labels), batch in zip(kept, copied, strict=True):
            require(images.device == setting.device, f"the images are on {images.device}, not on {setting.device}")
            busy = busy @ busy  # so that the copies have something to overlap with
            moved = module.transfer_batch_to_device(batch, setting.device, 0)
            require(torch.equal(images, moved[0]) and torch.equal(labels, moved[1]), f"batch {count} differs")
            count += 1
    return Found(f"{count} batches are the same")


class Killed(pl.Callback):
    """Kills the process after the step that the variable KILL_AFTER names."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """As the system does when memory runs out, nothing is saved or ended properly."""
        if os.environ.get("KILL_AFTER") == str(trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)


def launch(arguments: Sequence[str], **variables: str) -> Any:
    """Start ``layershuffle`` in a process of its own, with these environment variables."""
    return subprocess.Popen([sys.executable, "-m", "layershuffle", *arguments], env=environment() | variables)


@check("correct", seconds=150)
def resuming(setting: Setting) -> Found:
    """With `--trainer.deterministic true`, a run that is killed in mid-epoch and resumed ends with the weights and the
    optimizer's state of an uninterrupted one, bit for bit."""
    runs = []
    for kill in ("10", ""):
        command, run = training(
            setting,
            *("--data.images_per_class=50", "--trainer.max_epochs=2", "--save_every_n_steps=4", "--resume"),
            *("--trainer.deterministic=true", "--trainer.callbacks+=layershuffle.gpu_check.correct.Killed"),
        )
        runs.append((command, run, launch(command, KILL_AFTER=kill)))
    codes = [process.wait() for *_, process in runs]
    require(codes == [-signal.SIGKILL, 0], f"the runs ended with the codes {codes}, not with -9 and 0: see the log")
    command, broken, _ = runs[0]
    stopped = torch.load(broken / "checkpoints/last.ckpt", weights_only=True)["global_step"]
    require(launch(command).wait() == 0, "the killed run could not be resumed: see the log")
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    found, expected = (
        tree_flatten({part: torch.load(run / "checkpoints/last.ckpt", weights_only=True)[part] for part in parts})
        for run in (broken, runs[1][1])
    )
    require(found[1] == expected[1], "the checkpoints don't hold the same things")
    different = sum(
        not (torch.equal(one, other) if isinstance(one, Tensor) else one == other)
        for one, other in zip(found[0], expected[0])
    )
    require(not different, f"{different} of {len(expected[0])} tensors and numbers differ")
    return Found(f"killed after step 10, resumed after step {stopped}: {len(expected[0])} tensors and numbers equal")


@check("correct", seconds=90, gpu=True)
def memory(setting: Setting) -> Found:
    """`--batch_size auto` finds the largest batch that fits into a part of the memory, and a memory that is full ends a
    training with one sentence."""
    limit = 3 << 30
    total = torch.cuda.get_device_properties(setting.device).total_memory
    torch.cuda.set_per_process_memory_fraction(limit / total, setting.device)
    output, least = new_folder() / "results.json", 32
    data = ["--data.classes=10", "--data.test_images_per_class=400", f"--data.eval_batch_size={least}"]
    data += [] if setting.cuda else ["--data.test_images=4"]
    setting.command(
        ["evaluate", FAMILIES[0], "glyphs", *data, "--pretrained=random", "--batch_size=auto"]
        + ["--protocols", "sequential", "arbitrary", "--orders=2", f"--output={output}"]
    )
    batch = read_json(output)["evaluation"]["batch_size"]
    require(
        least < batch < MOST_IMAGES, f"--batch_size auto chose {batch} images, not between {least} and {MOST_IMAGES}"
    )
    images, batch_size = (2000, 16384) if setting.cuda else (20, 128)
    much = (f"--data.images_per_class={images}", f"--data.batch_size={batch_size}", "--model.compile=false")
    command, _ = training(setting, *much)
    try:
        setting.command(command)
    except SystemExit as stop:
        said = str(stop.code)
    else:
        raise AssertionError(f"a batch of {batch_size:,} images should not fit")
    require("the GPU's memory is full: lower --data.batch_size" in said, f"a full memory was reported as: {said}")
    return Found(f"of 3 GB: {batch} images in evaluation; a training that needs more says so")


@check("correct", seconds=60)
def precision(setting: Setting) -> Found:
    """`--precision auto` chooses the faster precision for ViT-B/16, and on a GPU this is bf16."""
    model = random_model(setting, "vit_base_patch16_224" if setting.cuda else FAMILIES[0])
    fabric = make_fabric(setting.device.type, "auto", model)
    chosen = fabric._precision.precision
    model.to(setting.device)
    images = torch.randn(256 if setting.cuda else 8, *model.image_shape, device=setting.device)
    took = {}
    for name in ("32-true", "bf16-mixed"):
        with torch.inference_mode(), torch.autocast(setting.device.type, torch.bfloat16, enabled=name == "bf16-mixed"):
            took[name] = statistics.median(seconds(lambda: model(images), setting.device) for _ in range(7))
    other = next(name for name in took if name != chosen)
    times = took[other] / took[chosen]
    require(times > 0.9, f"{chosen} was chosen, which takes {1 / times:.2f} times as long as {other}")
    require(chosen == "bf16-mixed" or not setting.cuda, f"{chosen} was chosen: bf16 is not faster on this GPU")
    return Found(f"{chosen}, {times:.2g} times as fast as {other}")


@check("correct", seconds=180)
def processes(setting: Setting) -> Found:
    """DDP and FSDP learn what a single process learns, and with several GPUs, FSDP learns on all of them what DDP does
    if all run the same orders."""
    sharded = "--trainer.strategy.data_parallel_size"
    options = [
        *("--data.images_per_class=40", "--trainer.max_epochs=2", "--trainer.gradient_clip_val=null"),
        *("--trainer.precision=32-true", "--model.compile=false", "--trainer.log_every_n_steps=1"),
    ]

    def losses(command: list[str], run: Path) -> Tensor:
        found = metric(run, "train/loss") + metric(run, "val/loss")
        require(len(found) > 4, f"the run of {' '.join(command)} has logged too little")
        return torch.tensor(found)

    def compare(name: str, found: Tensor, expected: Tensor) -> float:
        worst = distance(found, expected)
        require(worst < 1e-3, f"the losses of {name} differ by {worst:.1e}")
        return worst

    def one(*configs: str, more: Sequence[str] = ()) -> Tensor:
        command, run = training(setting, *options, "--trainer.devices=1", *more, configs=configs)
        setting.command(command)
        if distributed.is_initialized():  # Lightning leaves the process group to the end of the process.
            distributed.destroy_process_group()
        return losses(command, run)

    alone = one()
    worst = max(compare("DDP", one("ddp"), alone), compare("FSDP", one("fsdp", more=[f"{sharded}=1"]), alone))
    figure = f"one process: the losses differ by at most {worst:.1e}"
    count = torch.cuda.device_count()
    if count > 1:
        found = []
        for config, more in {"ddp": "--model.orders_per_process=false", "fsdp": f"{sharded}={count}"}.items():
            command, run = training(setting, *options, more, f"--trainer.devices={count}", configs=(config,))
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            done = subprocess.run([*torchrun, "-m", "layershuffle", *command], env=environment())
            require(
                done.returncode == 0, f"{config} on {count} GPUs ended with the code {done.returncode}: see the log"
            )
            found.append(losses(command, run))
        figure += f"; {count} GPUs: by {compare(f'FSDP on {count} GPUs', found[1], found[0]):.1e}"
    return Found(figure)


@check("correct", seconds=45)
@torch.inference_mode()
def authors(setting: Setting) -> Found:
    """Checkpoints in the format of the paper's authors give the logits that the authors' own code gave on a CPU."""
    folder = Path(__file__).parents[2] / "tests/checkpoints/reference"
    if not folder.is_dir():
        raise LeftOut("run it from a checkout, which has such checkpoints")
    worst, count = 0.0, 0
    for config in sorted(folder.glob("*.config.json")):
        name = config.name.removesuffix(".config.json")
        model = load_reference(folder / f"{name}.safetensors", config).to(setting.device)
        golden = load_file(folder / f"{name}.io.safetensors")
        for key in (key for key in golden if key.endswith(".logits")):
            order = golden[key.replace(".logits", ".order")].tolist()
            with exactly():
                found = model(golden["input"].to(setting.device), order).logits.cpu()
            worst, count = max(worst, float((found - golden[key]).abs().max())), count + 1
            require(worst <= EXACT, f"{name} in the order {order}: the logits differ by {worst:.1e}")
    require(count, f"{folder} holds no checkpoint")
    return Found(f"{count} orders, largest difference {worst:.1e}")
