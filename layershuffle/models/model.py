"""A timm vision transformer that runs any execution order, with position encoding or position prediction.

timm is imported where it is used: it takes most of a second, which a command's --help needn't wait for.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from layershuffle.errors import UserError
from layershuffle.models.choice import OrderChoice
from layershuffle.models.position import Position, PositionEncoding, PositionPrediction
from layershuffle.orders.named import parse_order
from layershuffle.orders.order import Order, OrderLike, Step, Unit, sequential

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

Head = Literal["average", "class"]


class Output(NamedTuple):
    """What a model returns.

    Attributes:
        logits: [batch, classes].
        position_logits: [steps, batch, positions] with position prediction, else None; entry p is what the
            layer that ran at position p said (the mean over the members of a parallel step).
    """

    logits: Tensor
    position_logits: Tensor | None = None


class ImageFormat(NamedTuple):
    """The images that a model takes.

    Attributes:
        size: height and width, in pixels.
        mean: subtracted from each channel, in units of 0 to 1.
        std: what each channel is divided by, in units of 0 to 1.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class OrderedViT(nn.Module):
    """A timm ``VisionTransformer`` whose layers run in the order that the call asks for.

    The timm model is the submodule ``vit``, unchanged: ``model.vit.state_dict()`` loads into plain timm and
    the other way round. ``forward`` is ``embed``, one ``run_step`` per step, ``classify``; whoever runs many
    orders calls those three and shares the steps that the orders have in common.

    Args:
        vit: the backbone.
        position: "none", "encode" (PositionEncoding) or "predict" (PositionPrediction).
        positions: how many positions can be told apart, by default as many as the own order has steps.
        head: how a distilled DeiT classifies: "average" of its two heads (timm, the DeiT paper), or the "class"
            token's head alone (the LayerShuffle authors' code). Other models have one head and ignore it.
        order: the model's own order, which it runs unless told otherwise: by default its layers in sequence.
        choices: orders from which each image takes one unless told otherwise (OrderChoice), if any.

    Raises:
        UserError: (a ValueError) if the model can't run the own order or one of the choices.
    """

    def __init__(
        self,
        vit: "VisionTransformer",
        position: Position = "none",
        positions: int | None = None,
        head: Head = "average",
        order: OrderLike | None = None,
        choices: Sequence[Order] | None = None,
    ) -> None:
        super().__init__()
        self.vit = vit
        self.depth = len(vit.blocks)
        self.order = sequential(self.depth) if order is None else Order(order)
        self.positions = positions or len(self.order)
        self.head = head
        self.encoding = PositionEncoding(self.depth, vit.embed_dim, self.positions) if position == "encode" else None
        self.prediction = (
            PositionPrediction(self.depth, vit.embed_dim, self.positions) if position == "predict" else None
        )
        self.choice = None if choices is None else OrderChoice(choices, vit.embed_dim)
        if self.choice and self.prediction:
            raise UserError("images that choose their order can't predict positions: use position none or encode")
        self.halves = dict(HALVES)
        self.config: dict[str, Any] = {}
        for own in (self.order, *(choices or ())):
            self.check(own)
        if head == "class" and hasattr(vit, "head_dist"):
            vit.head_dist.requires_grad_(False)

    def forward(self, images: Tensor, order: OrderLike | None = None) -> Output:
        """Classify normalised ``images`` [batch, channels, height, width], running the layers in ``order``.

        Without ``order`` the model's own runs, or each image in the order it chooses where the model has choices.

        Raises:
            UserError: (a ValueError) if the order names a layer that the model lacks, or is longer than the
                positions that it can encode or predict.
        """
        if order is None and self.choice:
            return self._run_chosen(self.choice, self.embed(images))
        return self.run(self.embed(images), self.order if order is None else self.check(order))

    @property
    def image_format(self) -> ImageFormat:
        """Size and normalisation of the images, as timm's configuration of the backbone has them.

        Raises:
            UserError: if the images are not square.
        """
        height, width = self.vit.patch_embed.img_size
        if height != width:
            raise UserError(f"the model takes images of {height} x {width} pixels; only square ones are supported")
        cfg: Any = self.vit.pretrained_cfg
        mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
        if self.config.get("in_chans") == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        return ImageFormat(height, mean, std)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        size = self.image_format.size
        return self.vit.patch_embed.proj.in_channels, size, size

    def compile(self, **options: Any) -> None:
        """Compile the layers in place, each by itself: whatever order runs, it runs the same few graphs.

        Layers of one shape share a graph, so there is one for training and one for evaluation, and another pair for
        every further batch size and precision. Parameters and their names stay as they are. Compiled whole, as
        ``torch.compile(model)`` does, a model has a graph for every order.

        Args:
            options: of ``torch.compile``, such as ``backend``.

        Raises:
            UserError: (a ValueError) if there is no C++ compiler, which torch.compile needs.
        """
        compiler = os.environ.get("CXX", "g++")
        if "backend" not in options and not (shutil.which(compiler) or shutil.which("clang++")):
            raise UserError("compiling needs a C++ compiler: install g++, or leave the layers uncompiled")
        # Images that choose their orders run in groups of all sizes.
        options = {"dynamic": None if self.choice else False} | options
        # Layers that differ, as in the rate of their stochastic depth, have graphs of their own; torch gives up at 8.
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * (1 + self.depth))
        # It would split each layer of ViT-B in two, for an overlap that DDP has between layers anyway.
        dynamo.optimize_ddp = False
        projections = self.encoding.projections if self.encoding else ()
        heads = self.prediction.heads if self.prediction else ()
        for module in (*self.vit.blocks, *projections, *heads):
            module.compile(**options)
        self.halves = {half: torch.compile(run, **options) for half, run in HALVES.items()}

    def run(self, tokens: Tensor, order: Order) -> Output:
        """From embedded tokens [batch, tokens, dim] to the output, in an order that was checked."""
        position_logits = []
        for position, step in enumerate(order):
            tokens, step_logits = self.run_step(tokens, step, position)
            position_logits.append(step_logits)
        return self.classify(tokens, position_logits)

    def _run_chosen(self, choice: OrderChoice, tokens: Tensor) -> Output:
        """Run each image in the order it chooses; images that choose the same order run together."""
        chosen = choice(tokens).argmax(dim=1)
        rows = [(chosen == index).nonzero().squeeze(1) for index in range(len(choice.orders))]
        parts = [self.run(tokens[group], order) for group, order in zip(rows, choice.orders) if len(group)]
        back = torch.cat(rows).argsort()
        return parts[0]._replace(logits=torch.cat([part.logits for part in parts])[back])

    def check(self, order: OrderLike) -> Order:
        """The order, or the one that a name of named_orders.NAMED means, if this model can run it; else a UserError."""
        from timm.models.vision_transformer import Block

        order = (parse_order(order, self.order) if isinstance(order, str) else Order(order)).check(self.depth)
        if (self.encoding or self.prediction) and len(order) > self.positions:
            raise UserError(
                f"the order has {len(order)} steps, but the model knows only {self.positions} positions: "
                f"create it with positions={len(order)}"
            )
        if not isinstance(self.vit.blocks[0], Block) and any(unit.half for step in order for unit in step):
            raise UserError(
                f"the layers of this model ({type(self.vit.blocks[0]).__name__}) don't split into sublayers"
            )
        return order

    def embed(self, images: Tensor) -> Tensor:
        """Everything before the layers: [batch, channels, height, width] to [batch, tokens, dim]."""
        vit: Any = self.vit
        tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        return tokens.contiguous()  # without a class token they are not, for which compiled layers would differ

    def run_step(self, tokens: Tensor, step: Step, position: int) -> tuple[Tensor, Tensor | None]:
        """Run one step that holds ``position``: the new tokens and, with prediction, [batch, positions] logits."""
        outputs = [self._run_unit(tokens, unit, position) for unit in step]
        logits = [self.prediction(out, unit.layer) for out, unit in zip(outputs, step)] if self.prediction else []
        return _mean(outputs), _mean(logits) if logits else None

    def classify(self, tokens: Tensor, position_logits: list[Tensor | None]) -> Output:
        """Everything after the layers; ``position_logits`` are those of the steps run, in sequence."""
        from timm.models.vision_transformer import VisionTransformer

        if self.vit.global_pool == "token":  # the others would be normalised for nothing
            tokens = tokens[:, : self.vit.num_prefix_tokens]
        tokens = self.vit.norm(tokens)
        if self.head == "class":
            logits = VisionTransformer.forward_head(self.vit, tokens)
        else:
            logits = self.vit.forward_head(tokens)
        predicted = [step_logits for step_logits in position_logits if step_logits is not None]
        return Output(logits, torch.stack(predicted) if predicted else None)

    def _run_unit(self, tokens: Tensor, unit: Unit, position: int) -> Tensor:
        block: Any = self.vit.blocks[unit.layer]
        if self.encoding:
            tokens = self.encoding(tokens, unit.layer, position)
        return self.halves[unit.half](block, tokens) if unit.half else block(tokens)


def _attention(block: Any, tokens: Tensor) -> Tensor:
    return tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))


def _feed_forward(block: Any, tokens: Tensor) -> Tensor:
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))


HALVES: dict[str, Callable[[Any, Tensor], Tensor]] = {"a": _attention, "f": _feed_forward}
"""A layer's sublayers, by Unit.half."""


def _mean(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).mean(dim=0)
