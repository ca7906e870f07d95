"""The LightningModule that fine-tunes a vision transformer in an order sampled for every step."""

import math
from copy import deepcopy
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torchmetrics.functional.classification import multiclass_accuracy

from layershuffle.data import ImageData, Preprocess
from layershuffle.data.augmentation import Augmentation
from layershuffle.models.backbones import Head
from layershuffle.models.create import create_model
from layershuffle.models.model import Output
from layershuffle.models.position import Position, PositionTable
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.samplers import OrderSampler, Shuffle
from layershuffle.training import continuing, metadata, non_finite, step_means
from layershuffle.training.accumulation import weight_in_update
from layershuffle.training.averaging import check_averages, count_on_the_host, put_averages, refuse_averages
from layershuffle.training.budget import Budget, BudgetUnit
from layershuffle.training.callbacks import is_logged
from layershuffle.training.checkpointing import LastCheckpoint
from layershuffle.training.compute import Compute, layers_run
from layershuffle.training.device_copies import BatchCopier
from layershuffle.training.directions import check_callbacks
from layershuffle.training.distributed import (
    is_replicated,
    is_sharded,
    samples_own_orders,
    shard,
    unused_parameters,
    with_all_parameters,
)
from layershuffle.training.image_mean import ImageMean
from layershuffle.training.method import method_name
from layershuffle.training.non_finite import NO_STEP, FirstNonFiniteStep, all_finite
from layershuffle.training.objectives import Classification, Objective, StepKey
from layershuffle.training.optimizer import PAPER_ADAM, make_optimizer
from layershuffle.training.plan import Plan
from layershuffle.training.pretrained_head import match_head
from layershuffle.training.schedule import Schedule, make_scheduler, set_rates_again
from layershuffle.training.step_means import StepMeans
from layershuffle.training.step_orders import StepOrders
from layershuffle.training.trainable import Trainable


class FineTuner(pl.LightningModule):
    """Fine-tunes a vision transformer whose layers run in an order sampled anew for every training step.

    A method is the choice of a ``sampler``, of how the model uses its ``position``, and of an ``objective``: the
    LayerShuffle paper's baseline is ``Sequential`` with position none, its LayerShuffle, -position and -predict are
    ``Shuffle`` with none, encode and predict.

    Args:
        name: The backbone, a timm vision transformer.
        num_classes: Number of classes; ``layershuffle train`` takes it from the data.
        sampler: Samples the order of each training step.
        position: Whether the layers ignore the position at which they run ("none"), "encode" it or "predict" it.
        pretrained: False for random weights, true for timm's (fetched from the Hugging Face hub), or a path to weights
            of the same backbone: a timm state dict (.pth, .safetensors) or a checkpoint of ``layershuffle train``, or
            ``mini_glyphs``, which travels with the package. If the model has fewer layers, it takes the first ones.
        positions: Number of positions that the model can tell apart, by default the number of steps in its order.
            Orders with repeats need more.
        head: How a distilled DeiT classifies: with the "average" of its two heads, or with the "class" token's alone.
        order: The order that the model runs by default and whose steps samplers choose from: an order's text, or a name
            such as ``cycle(6)``, ``cycle-rev(6)`` or ``sequence(6)`` (parameter sharing, arXiv 2104.06022),
            ``sandwich(3)`` or ``sublayers`` (arXiv 1911.03864). By default the layers run in sequence.
        choices: Orders, as texts or names, of which each image learns to choose one (IOT, arXiv 2103.03457). They need
            the objective ``InstanceWise``, and no sampler is used.
        norm_eps: The epsilon of the backbone's layer norms, by default timm's.
        position_dim: Width of the vectors that encode the positions, by default that of the authors' code.
        position_dropout: Dropout of the projections that mix these vectors into the tokens.
        position_table: Whether there is one table of these vectors for the model, "shared" by the layers as in the
            authors' code, or one "per_layer", as the paper can be read too.
        depth: Number of layers, by default the backbone's. Of a deeper pretrained backbone the first ones are taken.
        drop_path: The probability with which the last layer's halves are skipped for an image
            (arXiv 1603.09382; timm's drop_path_rate). It falls to 0 at the first layer.
        timm_args: Further arguments of ``timm.create_model``, such as img_size.
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
        orders_per_batch: Into how many equal parts each batch is split. Each part runs in an order of its own, and one
            update is made with the mean of their gradients.
        orders_per_process: Whether each of several processes samples its own orders, so that an update averages several
            orders. By default they do with DDP; with sharded strategies they can't.
        compile: Compile the layers, see OrderedViT.compile. The first steps take longer; no order adds to that.
        checkpoint_layers: Keep only the input of each layer for the backward pass, and run the layer again there: less
            memory for a third more computation.
        seed: Decides the orders, together with the step and the process; ``layershuffle train`` sets it to
            its ``--seed``.
        label: What tables and figures call the method, by default its name, such as ``layershuffle-position``. It tells
            two runs of one method apart that differ in something else, such as the recipe.
    """

    def __init__(  # noqa: PLR0913, PLR0917 (jsonargparse makes an option of each argument)
        self,
        name: str,
        num_classes: int,
        sampler: OrderSampler = Shuffle(),  # noqa: B008 (it has no state)
        position: Position = "none",
        pretrained: bool | str = False,
        positions: int | None = None,
        head: Head = "average",
        order: str | None = None,
        choices: list[str] | None = None,
        norm_eps: float | None = None,
        position_dim: int = 32,
        position_dropout: float = 0.0,
        position_table: PositionTable = "shared",
        depth: int | None = None,
        drop_path: float = 0.0,
        timm_args: dict[str, Any] | None = None,
        objective: Objective = Classification(),  # noqa: B008 (it is copied)
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (it is frozen)
        trainable: Trainable = Trainable(),  # noqa: B008 (it is frozen)
        optimizer: OptimizerCallable = lambda parameters: torch.optim.Adam(parameters, **PAPER_ADAM),
        schedule: Schedule = Schedule(),  # noqa: B008 (it is frozen)
        budget: BudgetUnit = "steps",
        orders_per_batch: int = 1,
        orders_per_process: bool | None = None,
        compile: bool = False,
        checkpoint_layers: bool = False,
        seed: int = 0,
        label: str | None = None,
    ) -> None:
        super().__init__()
        # The model. Only arguments that differ from timm's defaults are passed on, because checkpoints record them.
        timm_args = dict(timm_args or {})
        if depth is not None:
            timm_args["depth"] = depth
        if drop_path:
            timm_args["drop_path_rate"] = drop_path
        self.model = create_model(
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
            **timm_args,
        )
        self.model.checkpoint_layers = checkpoint_layers
        self._pretrained = pretrained
        trainable.prepare(self.model)
        self.trainable = trainable

        # What it sees.
        self.preprocess = Preprocess(*self.model.image_format)
        self.augmentation = augmentation
        self.mix = augmentation.of_batch(num_classes)

        # What it minimises. A copy, because an objective keeps what it reads of the data, and the default is one object
        # for all modules.
        self.objective = deepcopy(objective)
        self.objective.check_model(self.model)
        self._objective_is_loaded = False

        # How it is updated, and for how long.
        self.optimizer = optimizer
        self.schedule = schedule
        self.compute = Compute()
        self.budget = Budget(budget, self.compute)

        # In which orders it runs. A sampler without a name, or whose orders the model can't run, should fail here and
        # not after the data have been read.
        self.sampler = sampler
        self.orders_per_process = orders_per_process
        fixed_orders = self.objective.fixed_orders(self.model)
        self.orders = StepOrders(
            sampler, self.model.order, fixed_orders, seed, orders_per_batch, progress=self.budget.progress
        )
        method_name(sampler, position)
        self.model.check(self.orders.sample(0))
        self.seed = seed
        self.label = label

        self.step_means = StepMeans()
        # Lightning's own mean over processes ignores that each may have a different number of images.
        self.means: Any = nn.ModuleDict({name: ImageMean() for name in ("sequential", "arbitrary", "loss")})
        self._first_non_finite = FirstNonFiniteStep()
        self._optimizer_options: list[dict[str, Any]] = []
        # What the checkpoint that a run goes on from says of its optimizer.
        self._resumed_state: dict[str, Any] = {}
        self._copier = BatchCopier()
        if compile:
            self.model.compile()

    @property
    def method(self) -> str:
        """The label, or the name of the method, such as ``layershuffle-position``."""
        if self.label:
            return self.label
        config = self.model.config
        return method_name(self.sampler, config["position"], config.get("order"), self.objective.method)

    @property
    def base_order(self) -> Order:
        """What counts as the sequential order of the trained model."""
        return self.orders.base_order

    # --- Before the first step ------------------------------------------------------------------------------

    def load_objective(self) -> None:
        """Read the files that the objective needs, once. ``setup`` does it, but only after the data are prepared."""
        if not self._objective_is_loaded:
            self.objective.load(self.model)
            self._objective_is_loaded = True

    def setup(self, stage: str) -> None:
        """Preprocess as the data say, and decide which processes sample their own orders.

        Raises a UserError if the strategy can't run the orders, or the objective doesn't fit the data.
        """
        # Any other data must come in the model's size.
        datamodule = getattr(self.trainer, "datamodule", None)
        data = datamodule if isinstance(datamodule, ImageData) else None
        if data is not None:
            self.preprocess = data.prepare_for(*self.model.image_format)

        examples = self.orders.fixed_orders or (self.orders.sample(0),)
        if samples_own_orders(self.trainer.strategy, self.orders_per_process, self.objective, examples):
            self.orders.processes = self.trainer.world_size
        else:
            self.orders.processes = 1

        # Evaluation needs neither the objective's files nor a budget.
        if stage == "fit":
            if data is not None and not self.trainer.ckpt_path:
                match_head(self.model, self._pretrained, data.class_names, self.seed)
                # Once it fits, the head stays as it is trained.
                self._pretrained = False
            self.load_objective()
            check_callbacks(self.trainer.callbacks)  # type: ignore[attr-defined]
            self.objective.read_data(data, self.model.config["num_classes"])
            self.budget.take_limits(self.trainer)

    def configure_model(self) -> None:
        """Shard the model for ModelParallelStrategy, which leaves that to the module."""
        if not isinstance(self.trainer.strategy, ModelParallelStrategy) or isinstance(self.model, FSDPModule):
            return
        refuse_averages(self.trainer.callbacks)  # type: ignore[attr-defined]
        shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of all trainable parameters and the schedule of its learning rate."""
        groups = None
        if self.trainable.needs_groups:
            groups = self.trainable.parameter_groups(self.model, self.orders.examples)
        optimizer = make_optimizer(self.optimizer, self.named_parameters(), groups)
        self._optimizer_options = continuing.options_of(optimizer)
        continuing.check_optimizer(self._resumed_state, optimizer)
        continuing.check_state(self._resumed_state, optimizer)
        self.schedule.check_end(self.budget)
        scheduler = make_scheduler(optimizer, self.schedule, self.budget)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Plan the run. Any earlier, the workers would read ahead before a run is resumed."""
        self.objective.start(self.model)
        count_on_the_host(self.trainer.callbacks)  # type: ignore[attr-defined]
        # Orders that were sampled before belong to an unknown progress.
        self.orders.forget_all()
        self.budget.plan(self.trainer)
        self.budget.stop_if_used_up(self.trainer)
        if not self.budget.ends_the_run:
            callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
            check_averages(callbacks, self.budget.planned_steps, self.trainer.max_epochs)
        # The rate of the coming step was set before the number of steps was known, or by another run's options.
        scheduler: Any = self.lr_schedulers()
        continuing.restore_options(self.trainer.optimizers[0], scheduler, self._optimizer_options)
        set_rates_again(scheduler)
        self._resumed_state = {}
        plan = Plan.of(self.trainer, self.budget, self.schedule, self.orders.examples)
        plan.announce(self.trainer)

    # --- A batch on its way to the model --------------------------------------------------------------------

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Save or stop between two steps; no other Lightning hook runs there."""
        if self.trainer.training:
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.between_steps(self.trainer)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a batch to the GPU while it still works on the step before."""
        to_device = partial(super().transfer_batch_to_device, batch, device, dataloader_idx)
        return self._copier.copy(to_device, device)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Resize and normalise on the device."""
        images, labels = batch
        dtype = next(self.model.parameters()).dtype
        return self.preprocess(images).to(dtype), labels

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Seed dropout and mixing by the epoch, the batch and the process, so that a resumed run repeats them."""
        key = (self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(seeded(*key).random() * 2**53))

    # --- A training step ------------------------------------------------------------------------------------

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch. Nothing here waits for the device, unless the loggers write."""
        step = self.global_step

        # Mixup and cutmix make probabilities of the labels.
        images, true_labels = batch
        labels = true_labels
        if self.mix:
            images, labels = self.mix(images, true_labels)

        # The step decides the orders, so batches that are accumulated into one update share them.
        orders = self.orders.of_batch(step, self.global_rank, len(images))
        key = StepKey(self.seed, step, self.global_rank)
        loss = self.objective.loss(self.model, images, labels, orders, key)

        values = {"loss": loss.total, **loss.terms, "accuracy": self._accuracy(loss.logits, true_labels)}
        self.step_means.add(values, len(images))
        self._count_batch(len(images))
        self._first_non_finite.note(loss.total, step)

        total = loss.total * weight_in_update(self.trainer, batch_idx)
        if is_replicated(self.trainer.strategy):
            total = with_all_parameters(total, self.model, orders)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clear the gradients of layers that no process ran, so that the optimizer skips them; count the update."""
        step = self.global_step
        if is_replicated(self.trainer.strategy):
            for parameter in unused_parameters(self.model, self.orders.of_update(step)):
                parameter.grad = None
        self.compute.full_steps += self.orders.layers_run(step) / layers_run(self.model.order)
        self.compute.updates += 1
        self.step_means.log_row(self)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End a run whose budget is used up. Stop if a loss was not finite.

        That is checked in the steps in which the loggers wait for the device anyway.
        """
        self.budget.stop_if_used_up(self.trainer)
        if is_logged(self.trainer):
            non_finite.stop_after(self._first_non_finite.read(), self, self.orders)
            self.orders.forget_before(self.global_step - 1)

    def on_train_epoch_end(self) -> None:
        """Log the losses of the last steps, and the means of the epoch."""
        self.step_means.end_epoch(self)

    def on_fit_end(self) -> None:
        """Give the trainer its limits back."""
        self.budget.give_limits_back(self.trainer)

    def _count_batch(self, images: int) -> None:
        images_of_all = images * self.trainer.world_size
        self.compute.images += images_of_all
        self.compute.layer_executions += images_of_all * self.orders.layers_run(self.global_step)

    def _accuracy(self, logits: Tensor, labels: Tensor) -> Tensor:
        classes = self.model.config["num_classes"]
        return multiclass_accuracy(logits, labels, classes, average="micro", validate_args=False)

    # --- Validation -----------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy in sequential and in arbitrary order, and ``val/loss``, which selects the best model."""
        images, labels = batch
        if not len(labels) and not is_sharded(self.trainer.strategy):
            return  # The last batch may have fewer images than there are processes.

        orders = self.orders.for_validation(batch_idx, self.global_step)
        # Some of the orders may be the same, and run once.
        outputs: dict[Order, Output] = {order: self.model(images, order) for order in dict.fromkeys(orders)}
        selecting_logits = outputs[orders.selecting].logits
        values = {
            "sequential": self._accuracy(outputs[orders.sequential].logits, labels),
            "arbitrary": self._accuracy(outputs[orders.arbitrary].logits, labels),
            "loss": self.objective.validation_loss(self.model, images, labels, selecting_logits),
        }
        for name, value in values.items():
            # A mean would skip NaN, and a model that fails on some images could become the best.
            self.means[name].update(value.nan_to_num(nan=math.inf, posinf=math.inf), len(labels))
            self.log(f"val/{name}", self.means[name], prog_bar=True)

    # --- Checkpoints ----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how to make the model and its data again; refuse to save weights that are not finite."""
        bad_step = self._first_non_finite.read()
        if bad_step == NO_STEP and not all_finite(self.parameters()):
            # The last step made them so, and no loss has shown it yet.
            bad_step = max(0, self.global_step - 1)
        non_finite.stop_after(bad_step, self, self.orders)

        put_averages(checkpoint, self.trainer)
        continuing.note(checkpoint, self.trainer)
        checkpoint[step_means.KEY] = self.step_means.state()
        metadata.write(
            checkpoint,
            config=metadata.model_config(self.model, self.base_order),
            method=self.method,
            sampler=repr(self.sampler),
            objective=self.objective,
            seed=self.seed,
            compute=self.compute,
            trainer=self.trainer,
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume from a checkpoint of another run, and go on counting."""
        config = metadata.model_config(self.model, self.base_order)
        saved = continuing.check(checkpoint, config, self.objective, self.seed, self.trainer)
        continuing.restore_callbacks(checkpoint, self.trainer.callbacks)  # type: ignore[attr-defined]
        self._resumed_state = continuing.optimizer_state(checkpoint)
        self.compute.restore(saved.compute or {})
        self.step_means.restore(checkpoint)
