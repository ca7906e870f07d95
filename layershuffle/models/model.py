"""A timm vision transformer that runs any execution order, with position encoding or position prediction."""

import os
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layershuffle.errors import UserError
from layershuffle.models.backbones import Head, State, backbone_of
from layershuffle.models.position import Position, PositionEncoding, PositionPrediction, PositionTable
from layershuffle.orders.named import parse_order
from layershuffle.orders.order import Order, OrderLike, Step, Unit, sequential


class Output(NamedTuple):
    """What a model returns.

    Attributes:
        logits: [batch, classes].
        position_logits: [steps, batch, positions] with position prediction, else None. Entry p is the prediction of the
            layer that ran at position p, or the mean over the layers of a parallel step.
    """

    logits: Tensor
    position_logits: Tensor | None = None


class ImageFormat(NamedTuple):
    """The images that a model takes: ``size`` x ``size`` pixels from 0 to 1, less ``mean``, divided by ``std``.

    The other fields say how they are resized, see ``data.preprocessing.resize``; by default as in the LayerShuffle
    paper (arXiv 2407.04513, section 4).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    crop_mode: str = "center"


class OrderChoice(nn.Module):
    """Predicts from the mean of an image's embedded tokens which of ``orders`` suits it (IOT, arXiv 2103.03457)."""

    def __init__(self, orders: Sequence[Order], dim: int) -> None:
        super().__init__()
        if not orders:
            raise UserError("there is nothing to choose from: give one order or more as choices")
        if twice := [order for order in orders if orders.count(order) > 1]:
            raise UserError(f"the orders to choose from must differ, but '{twice[0]}' is given more than once")
        self.orders = tuple(orders)
        self.predictor = nn.Linear(dim, len(orders))

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [batch, tokens, dim], before the first layer. Returns logits [batch, orders]."""
        return self.predictor(tokens.mean(dim=1))


class OrderedViT(nn.Module):
    """A timm vision transformer whose layers run in the order that the call asks for.

    The timm model is the submodule ``vit``, unchanged: ``model.vit.state_dict()`` loads into plain timm and the other
    way round. ``forward`` is ``embed``, one ``run_step`` per step, and ``classify``. Code that runs many orders calls
    these three and shares the steps with which the orders begin.

    Args:
        vit: a timm model of one of the families in ``backbones.FAMILIES``. The other arguments are those of
            ``create_model``.

    Attributes:
        checkpoint_layers: whether gradients are computed from the input of each layer, by running the layer again,
            instead of from everything that it computed (arXiv 1604.06174). It takes less memory and a third more time.

    Raises:
        UserError: if the family isn't supported, or the model can't run its base order or one of the choices.
    """

    def __init__(
        self,
        vit: nn.Module,
        position: Position = "none",
        positions: int | None = None,
        head: Head = "average",
        order: OrderLike | None = None,
        choices: Sequence[OrderLike] | None = None,
        *,
        position_dim: int = 32,
        position_dropout: float = 0.0,
        position_table: PositionTable = "shared",
    ) -> None:
        super().__init__()
        self.vit = vit
        self.backbone = backbone_of(vit, head)
        self.depth, dim = len(self.layers), self.backbone.dim
        self.order = sequential(self.depth)  # An order's name is read for a model whose base order this is.
        self.order = self._parsed("sequential" if order is None else order)
        self.positions = positions or len(self.order)
        encoding = (self.depth, dim, self.positions, position_dim, position_dropout, position_table)
        self.encoding = PositionEncoding(*encoding) if position == "encode" else None
        self.prediction = PositionPrediction(self.depth, dim, self.positions) if position == "predict" else None
        own = [] if choices is None else [self._parsed(choice) for choice in choices]
        self.choice = None if choices is None else OrderChoice(own, dim)
        if self.choice and self.prediction:
            raise UserError("images that choose their order can't predict positions: use position none or encode")
        self.halves = dict(self.backbone.halves)
        self.checkpoint_layers = False
        self.config: dict[str, Any] = {}
        for each in (self.order, *own):
            self.check(each)

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks of the timm model."""
        return self.backbone.layers

    def forward(self, images: Tensor, order: OrderLike | None = None) -> Output:
        """Classify normalised ``images`` [batch, channels, height, width], running the layers in ``order``.

        Without ``order`` the model's own runs, or if the model has choices, each image in the order it chooses. Raises
        UserError if the model can't run ``order``, see ``check``.
        """
        if order is None and self.choice:
            return self._run_chosen(self.choice, self.embed(images))
        return self.run(self.embed(images), self.order if order is None else self.check(order))

    @property
    def image_format(self) -> ImageFormat:
        """Size and normalisation from timm's configuration, resized as in the paper.

        Raises UserError if the images are not square.
        """
        channels, height, width = self.backbone.image_shape
        if height != width:
            raise UserError(f"the model takes images of {height} x {width} pixels; only square ones are supported")
        cfg: Any = self.vit.pretrained_cfg
        mean, std = tuple(cfg["mean"]), tuple(cfg["std"])
        if channels == 1:
            mean, std = (sum(mean) / len(mean),), (sum(std) / len(std),)
        return ImageFormat(height, mean, std)

    @property
    def timm_format(self) -> ImageFormat:
        """``image_format``, but resized as timm's configuration says, with which timm's accuracies were measured."""
        from timm.data import resolve_data_config

        found = resolve_data_config(pretrained_cfg=self.vit.pretrained_cfg)
        return self.image_format._replace(**{name: found[name] for name in ("crop_pct", "interpolation", "crop_mode")})

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return self.backbone.image_shape

    def compile(self, **options: Any) -> None:
        """Compile each layer in place, so that all orders share a few graphs. ``options`` are those of torch.compile.

        Layers of one shape share a graph for training and one for evaluation, and another pair for every further batch
        size and precision. Parameters and their names stay as they are. ``torch.compile(model)`` would compile a graph
        for every order. Raises UserError if there is no C++ compiler, which torch.compile needs.
        """
        compiler = os.environ.get("CXX", "g++")
        if "backend" not in options and not (shutil.which(compiler) or shutil.which("clang++")):
            raise UserError("compiling needs a C++ compiler: install g++, or leave the layers uncompiled")
        # Images that choose their orders run in groups of varying size.
        options = {"dynamic": None if self.choice else False} | options
        # Layers that differ, for example in their stochastic depth, each have their own graph; torch's limit is 8.
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * (1 + self.depth))
        # This would split each layer of ViT-B in two, to overlap what DDP overlaps between layers anyway.
        dynamo.optimize_ddp = False
        projections = self.encoding.projections if self.encoding else ()
        heads = self.prediction.heads if self.prediction else ()
        for module in (*self.layers, *projections, *heads):
            module.compile(**options)
        self.halves = {half: torch.compile(run, **options) for half, run in self.backbone.halves.items()}

    def run(self, state: State, order: Order) -> Output:
        """Run embedded images to the output, in an order that was checked."""
        position_logits = []
        for position, step in enumerate(order):
            state, step_logits = self.run_step(state, step, position)
            position_logits.append(step_logits)
        return self.classify(state, position_logits)

    def _run_chosen(self, choice: OrderChoice, state: State) -> Output:
        """Run each image in the order it chooses; images that choose the same order run together."""
        chosen = choice(state.tokens).argmax(dim=1)
        rows = [(chosen == index).nonzero().squeeze(1) for index in range(len(choice.orders))]
        parts = [self.run(state.of(group), order) for group, order in zip(rows, choice.orders) if len(group)]
        back = torch.cat(rows).argsort()
        return parts[0]._replace(logits=torch.cat([part.logits for part in parts])[back])

    def _parsed(self, order: OrderLike) -> Order:
        return parse_order(order, self.order) if isinstance(order, str) else Order(order)

    def check(self, order: OrderLike) -> Order:
        """The order, or the one that a name of orders.named.NAMED means.

        Raises UserError if it names a layer that the model lacks, splits layers that don't split, or is longer than the
        positions that the model can encode or predict.
        """
        order = self._parsed(order).check(self.depth)
        if (self.encoding or self.prediction) and len(order) > self.positions:
            raise UserError(
                f"the order has {len(order)} steps, but the model knows only {self.positions} positions: "
                f"create it with positions={len(order)}"
            )
        if not self.halves and any(unit.half for step in order for unit in step):
            raise UserError(f"the layers of this model ({self.backbone.block_name}) don't split into sublayers")
        return order

    def embed(self, images: Tensor) -> State:
        """Run everything before the layers, for images [batch, channels, height, width]."""
        state = self.backbone.embed(images)
        # Without a class token they are not contiguous, and compiled layers would differ for the first step.
        return state._replace(tokens=state.tokens.contiguous())

    def run_step(self, state: State, step: Step, position: int) -> tuple[State, Tensor | None]:
        """Run the step at ``position``. Returns the new state and, with prediction, [batch, positions] logits."""
        outputs = [self._run_unit(state, unit, position) for unit in step]
        logits = [self.prediction(out, unit.layer) for out, unit in zip(outputs, step)] if self.prediction else []
        return state._replace(tokens=_mean(outputs)), _mean(logits) if logits else None

    def classify(self, state: State, position_logits: list[Tensor | None]) -> Output:
        """Run everything after the layers; ``position_logits`` are those of the steps run, in sequence."""
        predicted = [step_logits for step_logits in position_logits if step_logits is not None]
        return Output(self.backbone.classify(state.tokens), torch.stack(predicted) if predicted else None)

    def _run_unit(self, state: State, unit: Unit, position: int) -> Tensor:
        tokens, block = state.tokens, self.layers[unit.layer]
        if self.encoding:
            tokens = self.encoding(tokens, unit.layer, position)
        run = self.halves[unit.half] if unit.half else self.backbone.run
        context = self.backbone.context_of(unit.layer, state.context)
        recomputed = self.checkpoint_layers or getattr(
            self.vit, "grad_checkpointing", False
        )  # set by timm's own method
        if recomputed and torch.is_grad_enabled():
            return checkpoint(run, block, tokens, context, use_reentrant=False)
        return run(block, tokens, context)


def _mean(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.stack(tensors).mean(dim=0)
