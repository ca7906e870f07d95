"""The options of a training, and the parts that are made of them. What happens in it stands in ``training.loop``."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable

from layershuffle.data.augmentation import Augmentation
from layershuffle.models.backbones import Head
from layershuffle.models.create import create_model
from layershuffle.models.position import Position, PositionTable
from layershuffle.orders.sampler import OrderSampler
from layershuffle.orders.samplers import Shuffle
from layershuffle.training.budget import Budget, BudgetUnit
from layershuffle.training.compute import Compute
from layershuffle.training.loop import FineTuningLoop
from layershuffle.training.method import method_name
from layershuffle.training.objectives import Classification, Objective
from layershuffle.training.optimizer import PAPER_ADAM
from layershuffle.training.schedule import Schedule
from layershuffle.training.step_orders import StepOrders
from layershuffle.training.trainable import Trainable


class FineTuner(FineTuningLoop):
    """Fine-tunes a vision transformer whose layers run in an order sampled anew for every training step.

    A method is the choice of a ``sampler``, of how the model uses its ``position``, and of an ``objective``: the
    LayerShuffle paper's baseline is ``Sequential`` with position none, its LayerShuffle, -position and -predict are
    ``Shuffle`` with none, encode and predict.

    Args:
        name: The backbone, a timm vision transformer.
        num_classes: Number of classes; ``layershuffle train`` takes it from the data.
        pretrained: False for random weights, true for timm's (fetched from the Hugging Face hub), or a path to weights
            of the same backbone: a file of timm, of Hugging Face's transformers or of another trainer (.pth,
            .safetensors), a checkpoint of ``layershuffle train``, an exported folder, or the name of a published model
            such as ``mini_glyphs``. If the model has fewer layers, it takes the first ones.
        depth: Number of layers, by default the backbone's. Of a deeper pretrained backbone the first ones are taken.
        drop_path: The probability with which the last layer's halves are skipped for an image
            (arXiv 1603.09382; timm's drop_path_rate). It falls to 0 at the first layer.
        head: How a distilled DeiT classifies: with the "average" of its two heads, or with the "class" token's alone.
        norm_eps: The epsilon of the backbone's layer norms, by default timm's.
        timm_args: Further arguments of ``timm.create_model``, such as img_size.
        position: Whether the layers ignore the position at which they run ("none"), "encode" it or "predict" it.
        positions: Number of positions that the model can tell apart, by default the number of steps in its order.
            Orders with repeats need more.
        position_dim: Width of the vectors that encode the positions, by default that of the authors' code.
        position_dropout: Dropout of the projections that mix these vectors into the tokens.
        position_table: Whether there is one table of these vectors for the model, "shared" by the layers as in the
            authors' code, or one "per_layer", as the paper can be read too.
        order: The order that the model runs by default and whose steps samplers choose from: an order's text, or a name
            such as ``cycle(6)``, ``cycle-rev(6)`` or ``sequence(6)`` (parameter sharing, arXiv 2104.06022),
            ``sandwich(3)`` or ``sublayers`` (arXiv 1911.03864). By default the layers run in sequence.
        choices: Orders, as texts or names, of which each image learns to choose one (IOT, arXiv 2103.03457). They need
            the objective ``InstanceWise``, and no sampler is used.
        sampler: Samples the order of each training step.
        orders_per_batch: Into how many equal parts each batch is split. Each part runs in an order of its own, and one
            update is made with the mean of their gradients.
        orders_per_process: Whether each of several processes samples its own orders, so that an update averages several
            orders. By default they do with DDP; with sharded strategies they can't.
        seed: Decides the orders, together with the step and the process; ``layershuffle train`` sets it to
            its ``--seed``.
        objective: The loss that is minimised, and how the model is validated: ``Classification``, ``InstanceWise``,
            ``Distillation``, or a subclass of ``Objective`` of your own.
        augmentation: How the training images are changed at random.
        trainable: Which parameters are trained, and how fast.
        optimizer: Makes the optimizer; by default the paper's (section 4).
        schedule: How the learning rate changes in the course of the training.
        budget: What trainer.max_epochs and max_steps limit: "steps", or "layer_executions" (images x layers that they
            ran through). Then a step that runs half of the layers counts for half: the run lasts until it has executed
            as many layers as the limit's steps would if they ran all. The schedule, its warm-up and samplers that
            change with time go by the share of the budget that is used up.
        compile: Compile the layers, see OrderedViT.compile. The first steps take longer; no order adds to that.
        checkpoint_layers: Keep only the input of each layer for the backward pass, and run the layer again there: less
            memory for a third more computation.
        label: What tables and figures call the method, by default its name, such as ``layershuffle-position``. It tells
            two runs of one method apart that differ in something else, such as the recipe.
    """

    def __init__(  # noqa: PLR0913 (jsonargparse makes an option of each argument)
        self,
        name: str,
        num_classes: int,
        *,
        # The model.
        pretrained: bool | str = False,
        depth: int | None = None,
        drop_path: float = 0.0,
        head: Head = "average",
        norm_eps: float | None = None,
        timm_args: dict[str, Any] | None = None,
        # What it makes of the position at which a layer runs.
        position: Position = "none",
        positions: int | None = None,
        position_dim: int = 32,
        position_dropout: float = 0.0,
        position_table: PositionTable = "shared",
        # The orders in which it is trained.
        order: str | None = None,
        choices: list[str] | None = None,
        sampler: OrderSampler = Shuffle(),  # noqa: B008 (it has no state)
        orders_per_batch: int = 1,
        orders_per_process: bool | None = None,
        seed: int = 0,
        # The loss, and the images that it is computed of.
        objective: Objective = Classification(),  # noqa: B008 (it is copied)
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (it is frozen)
        # What is trained, how fast and for how long.
        trainable: Trainable = Trainable(),  # noqa: B008 (it is frozen)
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, **PAPER_ADAM),
        schedule: Schedule = Schedule(),  # noqa: B008 (it is frozen)
        budget: BudgetUnit = "steps",
        # How it runs, and what it is called.
        compile: bool = False,
        checkpoint_layers: bool = False,
        label: str | None = None,
    ) -> None:
        model = create_model(
            name,
            num_classes,
            position,
            pretrained,
            positions=positions,
            head=head,
            order=order,
            choices=choices,
            norm_eps=norm_eps,
            position_dim=position_dim,
            position_dropout=position_dropout,
            position_table=position_table,
            **_timm_arguments(timm_args, depth, drop_path),
        )
        model.checkpoint_layers = checkpoint_layers
        trainable.prepare(model)

        # A copy, because an objective keeps what it reads of the data, and the default is one object for all modules.
        objective = deepcopy(objective)
        objective.check_model(model)

        # Samplers that change with time ask the budget how far the training has got.
        lasting = Budget(budget, Compute())
        orders = StepOrders(
            sampler, model.order, objective.fixed_orders(model), seed, orders_per_batch, progress=lasting.progress
        )

        # A sampler without a name, or whose orders the model can't run, should fail here and not after the data have
        # been read.
        method_name(sampler, position)
        model.check(orders.sample(0))

        super().__init__(
            model=model,
            pretrained=pretrained,
            trainable=trainable,
            mix=augmentation.of_batch(num_classes),
            objective=objective,
            optimizer=optimizer,
            schedule=schedule,
            budget=lasting,
            orders=orders,
            orders_per_process=orders_per_process,
            label=label,
        )
        self.augmentation = augmentation
        if compile:
            self.model.compile()


def _timm_arguments(timm_args: Mapping[str, Any] | None, depth: int | None, drop_path: float) -> dict[str, Any]:
    """The arguments of ``timm.create_model``: those of ``timm_args``, and two that have options of their own."""
    # Only arguments that differ from timm's defaults are passed on, because checkpoints record them.
    arguments = dict(timm_args or {})
    if depth is not None:
        arguments["depth"] = depth
    if drop_path:
        arguments["drop_path_rate"] = drop_path
    return arguments
