"""Do the models compute on the GPU what they should?"""

import copy
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from layershuffle.config_files import known
from layershuffle.gpu_check.checks import Outcome, Setting, check, logged, require, train_small
from layershuffle.models import OrderedViT, create_model
from layershuffle.orders.named import parse_order, permutation, random_subset, sequential
from layershuffle.orders.order import Order, Unit, seeded
from layershuffle.training.objectives.classification import position_cross_entropy

_METHOD_CONFIGS = [path for name, path in known().items() if name.startswith("method/")]
METHODS = tuple(path.stem for path in _METHOD_CONFIGS if path.stem != "recorded")
"""All methods but the one that needs an event log."""
FAMILIES = ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224")
LESSON = {"data.images_per_class": 400, "trainer.max_epochs": 5}
"""The options of a training of about 300 steps. In fewer, methods that shuffle layers learn nothing."""
MAX_DIFFERENCE = 1e-4
"""How far float32 logits, of magnitude 1, may be from the CPU's."""
MAX_BF16_DISTANCE = 0.04
"""How far bf16 logits may be from float32 ones: the norm of the difference over the norm."""
MAX_COMPILED_DISTANCE = 1e-3
"""How far logits and gradients of compiled layers may be from those of uncompiled ones, measured in the same way."""
ORDERS_TO_COMPILE = 200


def random_model(setting: Setting, name: str = FAMILIES[0], **arguments: Any) -> OrderedViT:
    """A model on the CPU with random weights that are large enough for every order to give other logits.

    timm's initial weights are so small that each layer changes little, and a wrong order would go unnoticed.
    """
    torch.manual_seed(0)
    # On a CPU, four patches and four layers are enough, and take seconds.
    patch = 14 if "patch14" in name else 16
    size = {"img_size": 2 * patch, "depth": 4}
    if setting.is_gpu:
        size = {"img_size": 16 * patch, "depth": 12}
    model = create_model(name, 10, **{**size, **arguments}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def distance(tensor: Tensor, expected: Tensor) -> float:
    """The norm of the difference divided by the norm of ``expected``, which is on the CPU; infinite if there is NaN."""
    value = float((tensor.float().cpu() - expected).norm() / expected.norm())
    return math.inf if math.isnan(value) else value


def mixed_orders(depth: int, count: int) -> list[Order]:
    """Orders of every kind in turn: shuffled, cut, split in halves, with layers in parallel and with older states."""
    samplers: list[Callable[[Random], Order]] = [
        lambda rng: permutation(depth, rng),
        lambda rng: random_subset(1 + int(rng.random() * depth), depth, rng).shuffled(rng),
        lambda rng: parse_order("sublayers", sequential(depth)).shuffled(rng),
        lambda rng: Order([(Unit(0), Unit(2)), *sequential(depth)]).shuffled(rng),
        lambda rng: Order(["(0+2)", *sequential(depth)]).shuffled(rng),
        lambda rng: Order(["0", "1<1", *permutation(depth, rng)]),
    ]
    orders = []
    for number in range(count):
        sample = samplers[number % len(samplers)]
        orders.append(sample(seeded("check", number)))
    return orders


def exact_convolutions() -> Any:
    """A context in which convolutions are in full float32, as matrix products are by default.

    cuDNN's default is TF32, which has as few digits as float16.
    """
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


@check(
    "logits",
    "correct",
    "A ViT, a distilled DeiT and an EVA-02 give the CPU's logits in random orders: within 1e-4 in float32, and within "
    "4% in bf16.",
    seconds=60,
    quick_seconds=50,
)
@torch.inference_mode()
def logits(setting: Setting) -> Outcome:
    """Compare the logits of three families with the CPU's."""
    worst_float32 = 0.0
    worst_bf16 = 0.0
    for name in FAMILIES:
        model = random_model(setting, name)
        images = torch.randn(4, *model.image_shape)
        orders = mixed_orders(model.depth, 8)
        all_expected = [model(images, order).logits for order in orders]

        # Compute the same on the device, order by order.
        model.to(setting.device)
        images = images.to(setting.device)
        for order, expected in zip(orders, all_expected):
            with exact_convolutions():
                difference = (model(images, order).logits.cpu() - expected).abs().max()
            # Large logits have large rounding errors, so the difference is measured relative to them.
            float32 = float(difference / expected.abs().max().clamp(min=1))
            require(float32 <= MAX_DIFFERENCE, f"{name} in {order}: the logits differ by {float32:.2g} in float32")
            worst_float32 = max(worst_float32, float32)

            with torch.autocast(setting.device.type, torch.bfloat16):
                bf16 = distance(model(images, order).logits, expected)
            require(bf16 <= MAX_BF16_DISTANCE, f"{name} in {order}: the logits differ by {bf16:.1%} in bf16")
            worst_bf16 = max(worst_bf16, bf16)
    return Outcome(f"largest difference {worst_float32:.1e} in float32, {worst_bf16:.1%} in bf16")


@check(
    "methods",
    "correct",
    "Every method of configs/method trains on this device in its precision, and its classification loss falls by a "
    "fifth.",
    seconds=240,
    quick_seconds=80,
)
def methods(setting: Setting) -> Outcome:
    """Train with all methods, or with --quick with every fourth."""
    falls = {}
    every = 4 if setting.quick else 1
    for method in METHODS[::every]:
        options = {
            **LESSON,
            "trainer.limit_val_batches": 1,
            "trainer.log_every_n_steps": 1,
            "model.compile": False,
            "model.pretrained": "mini_glyphs",
        }
        run = train_small(setting, method, options=options)
        # The losses of single steps are noisy, also because each step has another order. So five are averaged.
        losses = logged(run.folder, "train/classification_loss")
        falls[method] = 1 - statistics.fmean(losses[-5:]) / statistics.fmean(losses[:5])
        require(falls[method] >= 0.2, f"{method}: the loss went from {losses[0]:.3f} to {losses[-1]:.3f}")
    least = min(falls, key=falls.__getitem__)
    return Outcome(f"{len(falls)} methods; least: {least}, by {falls[least]:.0%}", details=falls)


@check(
    "compiled",
    "correct",
    "Compiled layers give the logits and gradients of uncompiled ones, and after the first orders of each kind, 200 "
    "orders in training and evaluation add no graph.",
    seconds=200,
    quick_seconds=90,
)
def compiled(setting: Setting) -> Outcome:
    """Compare compiled and uncompiled layers, and count the graphs that torch makes."""
    torch._dynamo.reset()
    # At its usual limit torch would stop compiling, and the check would not see that orders go on to need new graphs.
    torch._dynamo.config.recompile_limit = 1000
    comparison = CompiledComparison(setting)
    # The modules for positions are compiled too.
    positions = ("none",) if setting.quick else ("none", "encode", "predict")
    for position in positions:
        comparison.compare(position)
    return Outcome(
        f"largest difference {comparison.worst:.1e}; {comparison.graphs} graphs, none of them added by "
        f"{ORDERS_TO_COMPILE} orders"
    )


@dataclass
class CompiledComparison:
    """Compares compiled layers with uncompiled ones.

    Attributes:
        setting: the device.
        worst: the largest distance until now.
        graphs: how many graphs torch has made.
    """

    setting: Setting
    worst: float = 0.0
    graphs: int = 0
    _counts: Any = field(default_factory=lambda: torch._dynamo.utils.counters["stats"])

    def compare(self, position: str) -> None:
        """Compare a model with this use of position.

        Raises:
            WrongResultError: if the logits or gradients differ, or an order adds a graph.
        """
        plain = random_model(self.setting, position=position, depth=4, positions=8, img_size=32)
        plain.to(self.setting.device)
        model = copy.deepcopy(plain)
        # On a CPU only the graphs are made, and no kernels: its compiler says nothing about a GPU's and takes minutes.
        if self.setting.is_gpu:
            model.compile()
        else:
            model.compile(backend="aot_eager")
        images = torch.randn(8, *model.image_shape, device=self.setting.device)
        orders = mixed_orders(4, ORDERS_TO_COMPILE)

        # The first orders of each kind add graphs, and are compared with uncompiled layers.
        before = self._counts["unique_graphs"]
        with exact_convolutions():
            # The first four orders are enough: they run whole layers, halves and a group. The last two kinds of
            # ``mixed_orders`` differ from these in how outputs are added up, which isn't compiled.
            for order in orders[:4]:
                for compute in (_gradients, _logits):
                    difference = distance(compute(model, order, images), compute(plain, order, images))
                    self.worst = max(self.worst, difference)
                require(
                    self.worst <= MAX_COMPILED_DISTANCE,
                    f"compiled and uncompiled layers differ by {self.worst:.1e} in the order {order}",
                )

            # From then on no order may add a graph: a user would wait for the compiler in every step.
            first = self._counts["unique_graphs"]
            for order in orders:
                _gradients(model, order, images)
                _logits(model, order, images)
        # If nothing was compiled, the comparison above has compared a model with itself.
        require(first > before, "nothing was compiled")
        added = self._counts["unique_graphs"] - first
        require(not added, f"{added} of {len(orders)} orders added a graph, with position {position}")
        self.graphs += first - before


def _gradients(model: OrderedViT, order: Order, images: Tensor) -> Tensor:
    """The gradients of all parameters that the order uses, one after the other, on the CPU."""
    model.train().zero_grad()
    output = model(images, order)
    # Any labels will do, if they differ.
    loss = F.cross_entropy(output.logits, torch.arange(len(images), device=images.device))
    if output.position_logits is not None:
        loss = loss + position_cross_entropy(output).sum()
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return torch.cat([gradient.flatten().cpu() for gradient in gradients])


@torch.inference_mode()
def _logits(model: OrderedViT, order: Order, images: Tensor) -> Tensor:
    """The logits in an order, as an evaluation computes them, on the CPU."""
    logits: Tensor = model.eval()(images, order).logits
    return logits.cpu()
