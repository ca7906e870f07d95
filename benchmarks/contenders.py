"""What benchmarks/step.py compares: ways to run training steps and forward passes of the same architecture."""

import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.training_run import TrainingRun
from layershuffle.hardware import fastest_precision
from layershuffle.orders.sampler import OrderSampler
from layershuffle.orders.samplers import LayerDrop, Shuffle
from layershuffle.training.module import FineTuner
from layershuffle.training.objectives import StepKey
from layershuffle.training.optimizer import PAPER_ADAM

PLAIN = "timm, eager, in sequence"
FACE = "Hugging Face, permuted by hand"
EAGER = "ours, eager"
OURS = "ours, compiled"
LOOP = "ours, compiled, by train.py"
AGAIN = "ours, compiled, layers run again"
"""Layers run again for their gradients: it takes part if the ordinary way doesn't fit into the memory."""
FIXED = "torch.compile of the whole, one fixed order"
FORWARD = (PLAIN, FACE, EAGER, OURS, AGAIN, FIXED)
"""The contenders whose forward pass is timed too."""
MODEL = "vit_base_patch16_224"
CLASSES = 10
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
        config.intermediate_size = hidden
        config.num_labels = CLASSES
        config.image_size = size
        config.patch_size = patch
        config.num_channels = channels
        self.model: Any = ViTForImageClassification(config)
        vit: Any = self.model.vit
        # Newer versions of transformers have the list elsewhere.
        if hasattr(vit, "layers"):
            self.parent = vit
            self.list_name = "layers"
        else:
            self.parent = vit.encoder
            self.list_name = "layer"
        self.layers = list(getattr(self.parent, self.list_name))

    def forward(self, images: Tensor, order: list[int]) -> Tensor:
        """images: [batch, channels, height, width]. Returns [batch, classes]."""
        setattr(self.parent, self.list_name, nn.ModuleList(self.layers[layer] for layer in order))
        return self.model(images).logits


class Loop:
    """The training loop that a user would write; each call runs one step."""

    def __init__(self, model: nn.Module, loss: Callable[[int], Tensor], autocast: Autocast, optimizer: Any) -> None:
        self.model = model
        self.loss = loss
        self.autocast = autocast
        self.optimizer = optimizer
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


def shuffled(depth: int, step: int) -> list[int]:
    """The order of a step, for the contenders that permute their layers by hand."""
    layers = list(range(depth))
    random.Random(step).shuffle(layers)
    return layers


@dataclass
class Task:
    """What all contenders do: the architecture, a batch that stays on the device, and the precision.

    Attributes:
        device: where they run.
        batch: images in a step.
        width: the width of the layers.
        is_full: whether the model and the images are those of ViT-B/16, or small.
        precision: "32-true", "bf16-mixed" or "auto" until it is measured.
        folder: for what a training logs.
        depth: the number of layers.
    """

    device: torch.device
    batch: int
    width: int
    is_full: bool
    precision: str
    folder: str
    depth: int = 12
    raw: Tensor = field(init=False)
    images: Tensor = field(init=False)
    labels: Tensor = field(init=False)

    def __post_init__(self) -> None:
        shape = (self.batch, self.timm_args["in_chans"], self.timm_args["img_size"], self.timm_args["img_size"])
        self.raw = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        self.labels = torch.randint(0, CLASSES, (self.batch,), device=self.device)
        preprocess = FineTuner(MODEL, CLASSES, timm_args=self.timm_args).preprocess.to(self.device)
        self.images = preprocess(self.raw)
        if self.precision == "auto":
            self.precision = "bf16-mixed"
            if self.device.type != "cuda":
                self.precision = fastest_precision(self._plain_in_any_precision(), self.device)

    @property
    def timm_args(self) -> dict[str, Any]:
        """The arguments that make timm's model of this size."""
        if self.is_full:
            sizes = {"img_size": 224, "patch_size": 16, "in_chans": 3, "mlp_ratio": 4}
        else:
            sizes = {"img_size": 28, "patch_size": 7, "in_chans": 1, "mlp_ratio": 2}
        heads = max(1, self.width // (64 if self.is_full else 32))
        return {**sizes, "depth": self.depth, "embed_dim": self.width, "num_heads": heads}

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass in the task's precision."""
        # While "auto" is being measured, the measurement sets the precision.
        if self.precision == "auto":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed")

    def makers(self) -> dict[str, Callable[[], Contender]]:
        """What makes each contender. AGAIN is left out, which takes part only if OURS doesn't fit."""
        makers: dict[str, Callable[[], Contender]] = {
            PLAIN: self.plain,
            FACE: self.hugging_face,
            EAGER: lambda: self.ours(compile=False),
            OURS: self.ours,
            "ours, compiled, position encoded": lambda: self.ours(position="encode"),
            "ours, compiled, position predicted": lambda: self.ours(position="predict"),
            "ours, compiled, LayerDrop 0.2": lambda: self.ours(sampler=LayerDrop(0.2)),
            "ours, compiled, sublayers": lambda: self.ours(order="sublayers"),
            "ours, compiled, 2 orders a batch": lambda: self.ours(orders_per_batch=2),
            LOOP: self.training_run,
        }
        # A CPU gains nothing from it, and takes minutes to compile it.
        if self.device.type == "cuda":
            makers[FIXED] = lambda: self.compiled_whole(lambda _: shuffled(self.depth, 0))
        return makers

    def ours(self, compile: bool = True, sampler: OrderSampler | None = None, **arguments: Any) -> Contender:
        """This package's model, with further arguments of ``FineTuner``."""
        module = FineTuner(
            MODEL,
            CLASSES,
            sampler=sampler or Shuffle(),
            compile=compile,
            timm_args=self.timm_args,
            **arguments,
        ).to(self.device)

        def loss(step: int) -> Tensor:
            orders = module.orders.sample_parts(step, 0)
            return module.objective.loss(module.model, self.images, self.labels, orders, StepKey(0, step, 0)).total

        def forward() -> object:
            return module.model.eval()(self.images, module.orders.sample(random.randrange(10**6)))

        fused = torch.optim.Adam(module.model.parameters(), **PAPER_ADAM, fused=True)
        return Contender(Loop(module.model, loss, self.autocast, fused), forward, module.model.vit)

    def plain(self) -> Contender:
        """timm's model as it is."""
        vit = timm.create_model(MODEL, num_classes=CLASSES, **self.timm_args).to(self.device)
        return replace(self._by_a_user(vit, lambda step: vit(self.images)), vit=vit)

    def hugging_face(self) -> Contender:
        """Hugging Face's model, whose layers are permuted by hand."""
        sizes = self.timm_args
        face = HuggingFace(
            self.width,
            self.depth,
            sizes["num_heads"],
            sizes["mlp_ratio"] * self.width,
            sizes["img_size"],
            sizes["patch_size"],
            sizes["in_chans"],
        ).to(self.device)
        return self._by_a_user(face, lambda step: face(self.images, shuffled(self.depth, step)))

    def compiled_whole(self, order_of: Callable[[int], list[int]]) -> Contender:
        """timm's model compiled as a whole, in the order of each step."""
        whole = ByHand(timm.create_model(MODEL, num_classes=CLASSES, **self.timm_args)).to(self.device)
        run = torch.compile(whole, dynamic=False)
        return self._by_a_user(whole, lambda step: run(self.images, order_of(step)), fused=True)

    def training_run(self) -> Contender:
        """A training with Lightning's loop."""
        model = {"name": MODEL, "num_classes": CLASSES, "timm_args": self.timm_args}
        batch = (self.raw.cpu(), self.labels.cpu())
        run = TrainingRun(
            model=model, batch=batch, device=str(self.device), precision=self.precision, folder=self.folder
        )
        return Contender(run)

    def _by_a_user(self, model: nn.Module, run: Callable[[int], Tensor], fused: bool | None = None) -> Contender:
        """A model of others in the loop that a user would write; ``run`` gives the logits of a step."""
        optimizer = torch.optim.Adam(model.parameters(), **PAPER_ADAM, fused=fused)
        loop = Loop(model, lambda step: F.cross_entropy(run(step), self.labels), self.autocast, optimizer)

        def forward() -> object:
            model.eval()
            return run(random.randrange(10**6))

        return Contender(loop, forward, getattr(model, "vit", None))

    def _plain_in_any_precision(self) -> "Loop | TrainingRun":
        return self.plain().step
