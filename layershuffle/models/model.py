"""A timm vision transformer that runs any execution order, with position encoding or position prediction."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layershuffle.errors import UserError
from layershuffle.models.backbones import Head, State, backbone_of
from layershuffle.models.choice import OrderChoice
from layershuffle.models.combine import combine, mean
from layershuffle.models.compilers import check_compilers
from layershuffle.models.image_format import ImageFormat, papers_format, timms_format
from layershuffle.models.position import Position, PositionEncoding, PositionPrediction, PositionTable
from layershuffle.orders.named import parse_order
from layershuffle.orders.order import Order, OrderLike, Step, Unit, sequential
from layershuffle.plurals import counted


class Output(NamedTuple):
    """What a model returns.

    Attributes:
        logits: [batch, classes].
        position_logits: [steps, batch, positions] with position prediction, else None. Entry n is the prediction of the
            layer that ran as step n, or the mean over the layers of a group.
        positions: with position prediction, the position that each step had.
    """

    logits: Tensor
    position_logits: Tensor | None = None
    positions: Sequence[int] = ()

    def position_targets(self) -> Tensor:
        """The positions that are to be predicted, int64 [steps], on the device of the logits."""
        assert self.position_logits is not None
        device = self.position_logits.device
        # A tensor made of the list would be copied from the host, which would wait for the device.
        return torch.stack([torch.full((), position, device=device) for position in self.positions])


class OrderedViT(nn.Module):
    """A timm vision transformer whose layers run in the order that the call asks for.

    The timm model is the submodule ``vit``, unchanged: ``model.vit.state_dict()`` loads into plain timm and the other
    way round. ``forward`` is ``embed``, one ``run_step`` per step, and ``classify``. Code that runs many orders calls
    these three and shares the steps with which the orders begin.

    Args:
        vit: a timm model of one of the families in ``backbones.FAMILIES``. The other arguments are those of
            ``create_model``.

    Attributes:
        order: the base order, which runs by default.
        positions: how many positions the layers tell apart.
        encoding: the position encoding, or None.
        prediction: the position prediction, or None.
        choice: how an image chooses its order, in an ``InstanceWiseViT``; None in all other models.
        classifier: a module that takes the place of timm's classifier, or None: features [batch, dim] -> logits
            [batch, classes].
        config: the arguments of ``create_model`` that make the model again.
        checkpoint_layers: whether gradients are computed from the input of each layer, by running the layer again,
            instead of from everything that it computed (arXiv 1604.06174). It takes less memory and a third more time.

    Raises:
        UserError: if the family isn't supported, or the model can't run its base order.
    """

    def __init__(
        self,
        vit: nn.Module,
        position: Position = "none",
        positions: int | None = None,
        head: Head = "average",
        order: OrderLike | None = None,
        *,
        position_dim: int = 32,
        position_dropout: float = 0.0,
        position_table: PositionTable = "shared",
    ) -> None:
        super().__init__()
        self.vit = vit
        self.backbone = backbone_of(vit, head)
        self.depth = len(self.layers)
        dim = self.backbone.dim

        # The text of an order may be a name, such as cycle(6), which means an order of the layers in sequence.
        self.order = sequential(self.depth)
        if order is not None:
            self.order = self._parse(order)

        self.positions = positions or len(self.order)
        self.encoding: PositionEncoding | None = None
        if position == "encode":
            self.encoding = PositionEncoding(
                self.depth, dim, self.positions, position_dim, position_dropout, position_table
            )
        self.prediction: PositionPrediction | None = None
        if position == "predict":
            self.prediction = PositionPrediction(self.depth, dim, self.positions)
        self.choice: OrderChoice | None = None
        self.classifier: nn.Module | None = None

        # What runs one half of a layer, "a" or "f". These functions belong to no layer, so that ``compile`` puts
        # compiled ones in their place here.
        self.halves = dict(self.backbone.halves)
        self.checkpoint_layers = False
        self.config: dict[str, Any] = {}
        self.check(self.order)

    @property
    def layers(self) -> nn.ModuleList:
        """The blocks of the timm model."""
        return self.backbone.layers

    def forward(self, images: Tensor, order: OrderLike | None = None) -> Output:
        """Classify images, running the layers in an order.

        Args:
            images: normalised images, [batch, channels, height, width].
            order: the order; by default the model's base order.

        Raises:
            UserError: if the model can't run the order, see ``check``.
        """
        order = self.order if order is None else self.check(order)
        return self.run(self.embed(images), order)

    def run(self, state: State, order: Order) -> Output:
        """Run embedded images to the output, in an order that ``check`` has returned."""
        position_logits = []
        # An empty order runs no step, so that the embedded images themselves are classified.
        for result in self.run_steps(state, order):
            state, step_logits = result
            position_logits.append(step_logits)
        return self.classify(state, position_logits, order.positions)

    def run_steps(self, state: State, order: Order) -> Iterator[tuple[State, Tensor | None]]:
        """Run the steps of an order that ``check`` has returned; yields what ``run_step`` returns, after each step."""
        # A step reads the newest state, or an older one if it has a lag. Older states than any step reads are dropped,
        # to save memory.
        states = deque([state], maxlen=order.longest_lag + 1)
        for step, position in zip(order, order.positions):
            state, step_logits = self.run_step(states[-1], step, position, states[-1 - step.lag])
            states.append(state)
            yield state, step_logits

    def embed(self, images: Tensor) -> State:
        """Run everything before the layers, for images [batch, channels, height, width]."""
        state = self.backbone.embed(images)
        # Without a class token, the embedded tokens aren't contiguous, unlike those that a layer returns. For tokens
        # with another memory layout, a layer that runs first would be compiled once more.
        return state._replace(tokens=state.tokens.contiguous())

    def run_step(
        self, state: State, step: Step, position: int, read: State | None = None
    ) -> tuple[State, Tensor | None]:
        """Run one step.

        Args:
            state: the newest state.
            step: what runs.
            position: its position.
            read: for a step with a lag, the older state that it reads.

        Returns:
            The new state and, with position prediction, logits [batch, positions].
        """
        if read is None or not step.lag:
            read = state
        # The units of a group all read the same state and have the same position.
        outputs = [self._run_unit(read, unit, position) for unit in step.units]
        new_state = state._replace(tokens=combine(step, state.tokens, read.tokens, outputs))

        if self.prediction is None:
            return new_state, None
        logits = [self.prediction(output, unit.layer) for output, unit in zip(outputs, step.units)]
        return new_state, mean(logits)

    def _run_unit(self, state: State, unit: Unit, position: int) -> Tensor:
        """Run a layer, or half of it. Returns the tokens [batch, tokens, dim]."""
        tokens = state.tokens
        if self.encoding:
            tokens = self.encoding(tokens, unit.layer, position)
        run = self.halves[unit.half] if unit.half else self.backbone.run
        block = self.layers[unit.layer]
        context = self.backbone.context_of(unit.layer, state.context)
        # Without gradients there is no backward pass for which a layer would have to run again.
        if self._runs_layers_again and torch.is_grad_enabled():
            return checkpoint(run, block, tokens, context, use_reentrant=False)
        return run(block, tokens, context)

    def classify(
        self, state: State, position_logits: Sequence[Tensor | None] = (), positions: Sequence[int] = ()
    ) -> Output:
        """Run everything after the layers, which gave these ``position_logits`` at these ``positions``."""
        if self.classifier is None:
            logits = self.backbone.classify(state.tokens)
        else:
            logits = self.classifier(self.backbone.features(state.tokens))
        predicted = [step_logits for step_logits in position_logits if step_logits is not None]
        if not predicted:
            return Output(logits)
        return Output(logits, torch.stack(predicted), positions)

    @contextmanager
    def classified_by(self, classifier: nn.Module | None) -> Iterator[None]:
        """Let a module take the place of the model's classifier within the context; None leaves it as it is."""
        before = self.classifier
        self.classifier = classifier or before
        try:
            yield
        finally:
            self.classifier = before

    @property
    def _runs_layers_again(self) -> bool:
        """Whether the backward pass runs layers again, which ``checkpoint_layers`` or timm's own method asks for."""
        return self.checkpoint_layers or getattr(self.vit, "grad_checkpointing", False)

    def check(self, order: OrderLike) -> Order:
        """The order that this model runs if it is given ``order``, which may be a name of orders.named.NAMED.

        Raises UserError if it names a layer that the model lacks, splits layers that don't split, or has more steps
        than there are positions that the model can encode or predict.
        """
        order = self._parse(order).check(self.depth)
        if (self.encoding or self.prediction) and len(order) > self.positions:
            raise UserError(
                f"the order has {counted(len(order), 'step')}, but the model knows only "
                f"{counted(self.positions, 'position')}: create it with positions={len(order)}"
            )
        has_halves = any(unit.half for unit in order.units)
        if has_halves and not self.halves:
            raise UserError(f"the layers of this model ({self.backbone.block_name}) don't split into sublayers")
        return order

    def _parse(self, order: OrderLike) -> Order:
        """The order that a text, a name or a sequence means for this model. The model may be unable to run it."""
        if isinstance(order, str):
            return parse_order(order, self.order)
        return Order(order)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the images."""
        return self.backbone.image_shape

    @property
    def image_format(self) -> ImageFormat:
        """Size and normalisation from timm's configuration, resized as in the paper.

        Raises UserError if the images are not square.
        """
        cfg: Any = self.vit.pretrained_cfg
        return papers_format(self.image_shape, cfg)

    @property
    def timm_format(self) -> ImageFormat:
        """``image_format``, but resized as timm's configuration says, with which timm's accuracies were measured."""
        cfg: Any = self.vit.pretrained_cfg
        return timms_format(self.image_format, cfg)

    def compile(self, **options: Any) -> None:
        """Compile each layer in place, so that all orders share a few graphs. ``options`` are those of torch.compile.

        Layers of one shape share a graph for training and one for evaluation, and another pair for every further batch
        size and precision. Parameters and their names stay as they are. ``torch.compile(model)`` would compile a graph
        for every order. Raises UserError if what torch.compile needs isn't installed.
        """
        if "backend" not in options:
            check_compilers()
        options = {"dynamic": False, **options}

        # Layers that differ, for example in their stochastic depth, each have graphs of their own. torch would give up
        # at 8 graphs of the same code.
        dynamo: Any = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * (1 + self.depth))
        # Otherwise torch would split each layer of ViT-B in two, so that DDP can exchange the gradients of one half
        # while the other is computed. Between layers that are compiled one by one it can do so anyway.
        dynamo.optimize_ddp = False

        # Each layer is compiled by itself. What comes between layers, which is the order, is left to Python.
        modules = list(self.layers)
        if self.encoding:
            modules += self.encoding.projections
        if self.prediction:
            modules += self.prediction.heads
        for module in modules:
            module.compile(**options)
        self.halves = {half: torch.compile(run, **options) for half, run in self.backbone.halves.items()}
