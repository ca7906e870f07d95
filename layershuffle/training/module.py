"""The LightningModule that fine-tunes a vision transformer, drawing an order for every step."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.functional.classification import multiclass_accuracy

from layershuffle.checkpoints.loading import RECORD
from layershuffle.data import ImageData, Preprocess
from layershuffle.data.augmentation import Augmentation
from layershuffle.errors import UserError
from layershuffle.models.create import create_model
from layershuffle.models.model import Output
from layershuffle.models.position import Position
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.samplers import OrderSampler, Shuffle, call
from layershuffle.training.callbacks import LastCheckpoint, is_logged
from layershuffle.training.compute import Compute, layers_run
from layershuffle.training.distillation import Distillation, Teacher
from layershuffle.training.distributed import is_sharded, orders_per_process, shard, unused_parameters
from layershuffle.training.instancewise import InstanceWise, expected_loss
from layershuffle.training.parameters import parameter_groups, train_only
from layershuffle.version import __version__

PAPER_ADAM: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-6}
"""The optimizer's arguments in arXiv 2407.04513, section 4."""


def method_name(sampler: OrderSampler, position: Position, order: str | None = None) -> str:
    """What the field calls this choice of orders and use of positions, such as ``layershuffle-predict``.

    An ``order`` of the model's own is named after it: ``baseline on cycle(6)``.
    """
    if not isinstance(getattr(sampler, "method", None), str):
        raise UserError(f'the sampler {type(sampler).__name__} has no name: set method = "its-name" in its class')
    name = sampler.method + {"none": "", "encode": "-position", "predict": "-predict"}[position]
    return f"{name} on {order}" if order else name


class FineTuner(pl.LightningModule):
    """Fine-tunes a vision transformer whose layers run in an order drawn anew for every training step.

    A method is two independent choices, ``sampler`` and ``position``: the LayerShuffle paper's baseline is
    ``Sequential`` with none, its LayerShuffle, -position and -predict are ``Shuffle`` with none, encode and predict.

    Args:
        name: the backbone, a timm vision transformer.
        num_classes: number of classes; ``layershuffle train`` takes it from the data.
        sampler: samples the order of each training step.
        position_loss: whether the "sum" (arXiv 2407.04513, section 3.3) or the "mean" (the authors' code) of the
            steps' position cross-entropies is added to the classification loss.
        optimizer: makes the optimizer; by default the paper's (section 4).
        orders_per_batch: into how many equal parts each batch is split. Each part runs in an order of its own, and one
            update is made with the mean of their gradients.
        budget: what trainer.max_epochs and max_steps limit: "steps", or "layer_executions" (images x layers that they
            ran through). Then a step that runs half of the layers counts for half: the run lasts until it has executed
            as many layers as the limit's steps would if they ran all. The schedule, its warm-up and samplers that
            change with time go by the share of the budget that is used up.
        schedule: the learning rate stays "constant" (how the paper is read here), or falls to zero as "linear" (the
            authors' code) or "cosine".
        warmup_steps: number of steps over which the learning rate first rises linearly, or if below 1, their share of
            all steps.
        layer_decay: the factor by which the learning rate falls with every layer from the head towards the images. In
            random orders a layer has no depth: then all layers share one rate, the geometric mean of these.
        decay_norms: whether weight decay also holds for norms, biases and position embeddings.
        trainable: train only those parameters of the backbone in whose names one of these words appears, such as
            [head] or [norm, head]. Position modules are always trained.
        lora: the rank of the matrices that LoRA adds to each layer (arXiv 2106.09685); ``trainable: [lora, head]``
            trains these and the head alone.
        augmentation: how the training images are changed at random.
        label_smoothing: the share of each label that is spread evenly over all classes.
        class_weights: how much the training loss of each class counts: a number for each class, in the sequence of the
            labels, or "balanced" for images / (classes x images of the class), as in scikit-learn. The losses of
            validation and evaluation are without them.
        drop_path: timm's drop_path_rate: the probability with which the last layer's halves are skipped for an image
            (arXiv 1603.09382). It falls to 0 at the first layer.
        depth: number of layers, by default the backbone's. Of a deeper pretrained backbone the first ones are taken.
        instancewise: how the images learn to choose.
        distillation: the frozen teacher that the model also learns from, if any.
        compile: compile the layers, see OrderedViT.compile. The first steps take longer; no order adds to that.
        checkpoint_layers: keep only the input of each layer for the backward pass, and run the layer again there: less
            memory for a third more computation.
        timm_args: further arguments of ``timm.create_model``, such as img_size.
        orders_per_process: whether each of several processes draws its own orders, so that an update averages several
            orders. By default they do with DDP; with sharded strategies they can't.
        seed: decides the orders, together with the step and the process; ``layershuffle train`` sets it to
            seed_everything.
        label: what tables and figures call the method, by default its name, such as ``layershuffle-position``. Two runs
            of one method that differ in something else, such as the recipe, are told apart by it.
        kwargs: further arguments of ``create_model``.
    """

    loss_weights: Tensor | None

    def __init__(
        self,
        name: str,
        num_classes: int,
        sampler: OrderSampler = Shuffle(),  # noqa: B008 (it has no state)
        position_loss: Literal["sum", "mean"] = "sum",
        orders_per_batch: int = 1,
        budget: Literal["steps", "layer_executions"] = "steps",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, **PAPER_ADAM),
        schedule: Literal["constant", "linear", "cosine"] = "constant",
        warmup_steps: float = 0,
        layer_decay: float = 1.0,
        decay_norms: bool = True,
        trainable: list[str] | None = None,
        lora: int | None = None,
        augmentation: Augmentation = Augmentation(),  # noqa: B008 (it is frozen)
        label_smoothing: float = 0.0,
        class_weights: list[float] | Literal["balanced"] | None = None,
        drop_path: float = 0.0,
        depth: int | None = None,
        instancewise: InstanceWise = InstanceWise(),  # noqa: B008 (it is frozen)
        distillation: Distillation = Distillation(),  # noqa: B008 (it is frozen)
        compile: bool = False,
        checkpoint_layers: bool = False,
        timm_args: dict[str, Any] | None = None,
        orders_per_process: bool | None = None,
        seed: int = 0,
        label: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        timm_args = (timm_args or {}) | ({} if depth is None else {"depth": depth})
        timm_args |= {"drop_path_rate": drop_path} if drop_path else {}
        # jsonargparse makes the arguments of create_model that are not named here options of this class.
        norm_eps = timm_args.pop("norm_eps", None)
        self.model = create_model(name, num_classes, norm_eps=norm_eps, **kwargs, **timm_args)
        self.model.checkpoint_layers = checkpoint_layers
        train_only(self.model, trainable, lora)
        self.preprocess = Preprocess(*self.model.image_format)
        self.augmentation = augmentation
        self.mix = augmentation.of_batch(num_classes)
        self.label_smoothing = label_smoothing
        self.class_weights = class_weights
        self.register_buffer("loss_weights", None, persistent=False)
        if isinstance(class_weights, list):
            if len(class_weights) != num_classes or not all(0 < weight < math.inf for weight in class_weights):
                raise UserError(
                    f"class_weights is a number above 0 for each of the {num_classes} classes, or balanced, not "
                    f"{class_weights}"
                )
            self.loss_weights = torch.tensor(class_weights)
        self.sampler = sampler
        self.instancewise = instancewise
        self.distillation = distillation
        self.teacher: Teacher | None = None
        self.position_loss = position_loss
        self.orders_per_batch = orders_per_batch
        self.budget = budget
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.layer_decay, self.decay_norms = layer_decay, decay_norms
        self.orders_per_process = orders_per_process
        # Lightning's own mean over processes ignores that each may have a different number of images.
        self.means: Any = nn.ModuleDict({name: MeanMetric() for name in ("sequential", "arbitrary", "loss")})
        self.seed, self.label = seed, label
        self._not_finite = FirstNonFiniteStep()
        self._own_orders = True
        self.compute = Compute()
        self._drawn: dict[int, list[list[Order]]] = {}  # the orders of each process, of the latest steps
        self._limits: tuple[int | None, int] = (None, -1)  # the trainer's max_epochs and max_steps
        self._planned_steps: float = 0
        self._copying: torch.cuda.Stream | None = None
        if warmup_steps < 0:
            raise UserError(f"warmup_steps is a number of steps from 0 up, not {warmup_steps}")
        if not 0 < layer_decay <= 1 or not 0 <= label_smoothing < 1:
            raise UserError("layer_decay is a factor from above 0 to 1, and label_smoothing a share from 0 to below 1")
        if orders_per_batch < 1 or (orders_per_batch > 1 and self.model.choice):
            raise UserError(
                "orders_per_batch is a number from 1 up, and 1 where the images choose their orders, which run in all "
                f"of them, not {orders_per_batch}"
            )
        if distillation.teacher and self.model.choice:
            raise UserError(
                "images that choose their orders can't learn from a teacher: leave out distillation.teacher"
            )
        # A sampler without a name, or whose orders the model can't run, should fail here and not after the data.
        method_name(sampler, self.model.config["position"])
        self.draw(0)
        if compile:
            self.model.compile()

    @property
    def method(self) -> str:
        """The label, or the name of the method, such as ``layershuffle-position``."""
        if self.label:
            return self.label
        name = method_name(self.sampler, self.model.config["position"], self.model.config.get("order"))
        return f"instancewise{name.removeprefix(self.sampler.method)}" if self.model.choice else name

    def draw(self, step: int, rank: int = 0) -> Order:
        """The order of training step ``step`` on process ``rank``, of the steps of the model's base order."""
        order = self.sampler.sample_step(len(self.model.order), self.seed, step, rank, self._progress(step))
        return order.over(self.model.order)

    def orders_of(self, step: int, rank: int) -> list[Order]:
        """The orders that process ``rank`` runs in training step ``step``, one for each part of the batch.

        One process with m orders per batch draws those of m processes with one order each.
        """
        if self.model.choice:
            return list(self.model.choice.orders)
        first = (rank if self._own_orders else 0) * self.orders_per_batch
        return [self.draw(step, first + part) for part in range(self.orders_per_batch)]

    @property
    def base_order(self) -> Order:
        """What counts as the sequential order of the trained model, see ``OrderSampler.base_order``."""
        own = self.model.order
        return own if self.model.choice else self.sampler.base_order(len(own)).over(own)

    @property
    def _trained_config(self) -> dict[str, Any]:
        """How to make the trained model again, for which layers that were never trained don't count."""
        if self.base_order == self.model.order:
            return self.model.config
        return self.model.config | {"order": str(self.base_order), "positions": self.model.positions}

    def on_train_start(self) -> None:
        """Move the teacher, and note how many steps are planned.

        Asked any earlier, the workers would read ahead before a run is resumed.
        """
        if self.teacher:
            self.teacher.to(self.device, next(self.model.parameters()).dtype)
        if self._ends_itself:
            self._limit(*self._limits)
        self._drawn.clear()
        self._planned_steps = self.trainer.estimated_stepping_batches
        if self._ends_itself:
            self._limit(-1, -1)
            self._stop_at_the_end()
        if 0 < self.warmup_steps < 1:  # The rate of the first step was set before the number of steps was known.
            scheduler: Any = self.lr_schedulers()
            rates = zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas)
            for group, rate, factor in rates:
                group["lr"] = rate * factor(scheduler.last_epoch)

    def _progress(self, step: int) -> float:
        """The share of the budget that is used up at ``step``, from 0 to 1, or 0 if there is none."""
        return min(1.0, self._done(step) / self._planned_steps) if self._planned_steps > 0 else 0.0

    def _done(self, step: int) -> float:
        """How many of the planned steps are used up before ``step``, which is the next one."""
        return step if self.budget == "steps" else self.compute.full_steps

    @property
    def _ends_itself(self) -> bool:
        """Whether this module, not the trainer, ends the run, which may have more steps than planned."""
        return self.budget == "layer_executions" and 0 not in self._limits

    def _limit(self, max_epochs: int | None, max_steps: int) -> None:
        loop = self.trainer.fit_loop
        loop.max_epochs, loop.epoch_loop.max_steps = max_epochs, max_steps

    def _stop_at_the_end(self) -> None:
        if self._ends_itself and self._done(self.global_step) >= self._planned_steps:
            self.trainer.should_stop = True

    def load_teacher(self) -> None:
        """Load the teacher, if there is one. Before a training this is done anyway; by hand, it fails earlier."""
        if self.distillation.teacher and not self.teacher:
            self.teacher = Teacher(self.distillation, self.model)

    def setup(self, stage: str) -> None:
        """Preprocess as the data says, load the teacher, and decide which processes draw their own orders.

        Raises a UserError if the strategy can't run them, or the teacher doesn't fit.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageData):
            self.preprocess = data.prepare_for(*self.model.image_format)
        if self.class_weights == "balanced" and stage == "fit":
            self.loss_weights = self._balanced_weights(data)
            self.class_weights = self.loss_weights.tolist()  # The precision of the run may round the others.
        orders = [self.draw(0), *(self.model.choice.orders if self.model.choice else ())]
        self._own_orders = orders_per_process(self.trainer.strategy, self.orders_per_process, self.model, orders)
        if stage == "fit":
            self.load_teacher()
            if self.teacher and isinstance(data, ImageData):
                self.teacher.check_names(data.class_names)
            self._limits = self.trainer.fit_loop.max_epochs, self.trainer.fit_loop.max_steps
            if self._ends_itself:  # Else the trainer would not begin to resume a run that has done as many epochs.
                self._limit(-1, -1)

    def on_fit_end(self) -> None:
        """Give the trainer its limits back."""
        self._limit(*self._limits)

    def _balanced_weights(self, data: Any) -> Tensor:
        if not isinstance(data, ImageData):
            raise UserError(
                "class_weights balanced needs an ImageData that has the labels: give the numbers themselves"
            )
        classes = self.model.config["num_classes"]
        counts = data.training_labels("model.class_weights balanced").bincount(minlength=classes)
        if not counts.all():
            names = data.class_names or range(classes)
            raise UserError(
                f"class_weights can't be balanced, because the class {names[int(counts.argmin())]} has no training "
                "image: give a number for each class"
            )
        return counts.sum() / (classes * counts)

    def configure_model(self) -> None:
        """Shard the model for ModelParallelStrategy, which leaves that to the module."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not isinstance(self.model, FSDPModule):
            trainer: Any = self.trainer
            if any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks):
                raise UserError("weights that are sharded can't be averaged: leave out EMAWeightAveraging, or use ddp")
            shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Save or stop between two steps; no other Lightning hook runs there."""
        if self.trainer.training:
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.between_steps(self.trainer)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a batch to the GPU on a stream of its own, while the GPU still works on the step before."""
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        self._copying = self._copying or torch.cuda.Stream(device)
        with torch.cuda.stream(self._copying):
            moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(self._copying)
        for part in moved:
            part.record_stream(computing)  # so that its memory is not reused before the step is done with it
        return moved

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Seed dropout and mixing by the epoch, the batch and the process, so that a resumed run repeats them."""
        key = (self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(seeded(*key).random() * 2**53))

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Resize and normalise on the device."""
        images, labels = batch
        return self.preprocess(images).to(next(self.model.parameters()).dtype), labels

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch, in one order or in parts. Batches that are accumulated into one update share the orders."""
        images, labels = self.mix(*batch) if self.mix else batch
        done = self.global_step + 1
        last = self._done(self.global_step) + 1 >= self._planned_steps
        logged = self.trainer.is_last_batch or last or is_logged(self.trainer, done)
        drawn = self._orders_of_all(self.global_step)
        orders = drawn[self.global_rank % len(drawn)]
        if self.model.choice:
            key = (self.seed, self.global_step, self.global_rank)
            loss, measured = expected_loss(
                self.model, self.model.choice, images, labels, self.instancewise, key, **self._how_far
            )
        else:
            orders = orders[: len(labels)]
            loss, measured, logits = self.run_parts(images, labels, orders)
            if logged:
                measured["accuracy"] = self._accuracy(logits, batch[1])
        if logged:  # Not with prog_bar, for which Lightning waits for the device in every step.
            values = {f"train/{name}": value.detach() for name, value in ({"loss": loss} | measured).items()}
            self.log_dict(values, batch_size=len(labels))
        self.compute.images += (count := len(labels) * self.trainer.world_size)
        self.compute.layer_executions += count * self._layers_run(self.global_step)
        self._not_finite.note(loss, self.global_step)
        if self._is_replicated:
            # DDP waits for the gradients of all parameters, so those that no order uses get zeros.
            loss = sum((0 * parameter.sum() for parameter in unused_parameters(self.model, orders)), start=loss)
        return loss

    def run_parts(
        self, images: Tensor, labels: Tensor, orders: Sequence[Order]
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Run equal parts of a batch in an order each. Returns the loss, its terms by name, and the logits.

        All are means over the images: a part has one image more than another where they can't be equal.
        """
        outputs = [self.model(part, order) for part, order in zip(images.tensor_split(len(orders)), orders)]
        logits = torch.cat([output.logits for output in outputs])
        loss = F.cross_entropy(logits, labels, **self._how_far)
        measured = {"classification_loss": loss}
        if self.teacher:
            measured["distillation_loss"] = self.distillation.loss(logits, self.teacher(images))
            weight = self.distillation.weight
            loss = (1 - weight) * loss + weight * measured["distillation_loss"]
        position_losses = []
        for output in outputs:
            if output.position_logits is not None:
                per_step = position_cross_entropy(output.position_logits)
                of_part = per_step.sum() if self.position_loss == "sum" else per_step.mean()
                position_losses.append(len(output.logits) / len(images) * of_part)
        if position_losses:
            measured["position_loss"] = torch.stack(position_losses).sum()
            loss = loss + measured["position_loss"]
        return loss, measured, logits

    @property
    def _how_far(self) -> dict[str, Any]:
        return {"label_smoothing": self.label_smoothing, "weight": self.loss_weights}

    def _layers_run(self, step: int) -> float:
        """How many layers an image runs through in training step ``step``, the mean over all processes."""
        if self.model.choice:
            return sum(map(layers_run, self.model.choice.orders))
        return fmean(layers_run(order) for orders in self._orders_of_all(step) for order in orders)

    def _orders_of_all(self, step: int) -> list[list[Order]]:
        """The orders of each process, or of the first one if all run the same.

        They are kept for a while, because those of steps that are done can't be drawn again under every budget.
        """
        if step not in self._drawn:
            processes = range(self.trainer.world_size if self._own_orders else 1)
            self._drawn[step] = [self.orders_of(step, rank) for rank in processes]
        return self._drawn[step]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clear the gradients of layers that no process ran, so that the optimizer skips them; count the update."""
        step = self.global_step
        if self._is_replicated and not self.model.choice:
            for parameter in unused_parameters(self.model, chain(*self._orders_of_all(step))):
                parameter.grad = None
        self.compute.full_steps += self._layers_run(step) / layers_run(self.model.order)
        self.compute.updates += 1

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy in sequential and in arbitrary order, and ``val/loss``, which selects the best model.

        ``val/loss`` is the classification loss under the orders that the method trains with, or that the images choose.
        The random orders depend on the seed and the batch alone, so that all epochs are compared on the same ones.
        """
        images, labels = batch
        if not len(labels) and not is_sharded(self.trainer.strategy):
            return  # the last batch may have fewer images than there are processes
        own, key = self.base_order, (self.seed, "validation", batch_idx)
        drawn = call(self.sampler.at_validation, len(self.model.order), seeded(*key), self._progress(self.global_step))
        orders = {
            "sequential": own,
            "arbitrary": own.shuffled(seeded(*key)),
            "val": drawn.over(self.model.order),
        }
        outputs: dict[Order, Output] = {order: self.model(images, order) for order in set(orders.values())}
        found = {kind: self._accuracy(outputs[orders[kind]].logits, labels) for kind in ("sequential", "arbitrary")}
        judged = self.model(images) if self.model.choice else outputs[orders["val"]]
        found["loss"] = F.cross_entropy(judged.logits, labels) if len(labels) else judged.logits.sum()
        for name, value in found.items():
            # A mean would skip NaN, and a model that fails on some images could become the best.
            self.means[name].update(value.nan_to_num(nan=math.inf, posinf=math.inf), len(labels))
            self.log(f"val/{name}", self.means[name], prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of all trainable parameters, fused unless told otherwise, and the learning rate's schedule.

        The optimizer gets the parameters with their names.
        """
        try:
            trained: list[Any] = [named for named in self.named_parameters() if named[1].requires_grad]
            if self.layer_decay != 1 or not self.decay_norms:
                names = {parameter: name for name, parameter in trained}
                groups = self._parameter_groups()
                trained = [group | {"params": [(names[p], p) for p in group["params"]]} for group in groups]
            optimizer = self.optimizer(trained)
        except ValueError as error:
            raise UserError(f"the optimizer can't be made: {error}") from error
        if isinstance(optimizer, (torch.optim.Adam, torch.optim.SGD)):  # AdamW is an Adam
            for group in optimizer.param_groups:
                if group["fused"] is None and not group["foreach"]:
                    group["fused"] = True
        # Lightning refuses to clip the gradients of optimizers that can unscale them, so let the scaler unscale them.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        is_share = 0 < self.warmup_steps < 1
        if self._limits == (-1, -1) and (is_share or self.schedule != "constant"):
            raise UserError(
                f"a {self.schedule} schedule {'with a share as warm-up ' * is_share}needs an end: set "
                "--trainer.max_epochs or --trainer.max_steps"
            )

        def factor(update: int) -> float:
            step = self._done(update)
            warmup = round(self.warmup_steps * self._planned_steps) if is_share else self.warmup_steps
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if self.schedule == "constant":
                return 1.0
            # When the optimizer is made, no steps are planned yet, but then the factor is 1 anyway.
            done = min(1.0, (step - warmup) / max(1, self._planned_steps - warmup))
            return 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2

        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _parameter_groups(self) -> list[dict[str, Any]]:
        if self.model.choice:
            orders = [*self.model.choice.orders]
        else:  # Some samplers change the orders in the course of the run.
            steps = len(self.model.order)
            orders = [self.sampler.sample_step(steps, self.seed, draw, progress=draw / 15) for draw in range(16)]
        return parameter_groups(self.model, orders, self.layer_decay, self.decay_norms)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record, in plain values, how to make the model and its data again; refuse to save non-finite weights."""
        step = self._not_finite.step()
        if step < 0 and not all_finite(self.parameters()):
            step = max(0, self.global_step - 1)
        self._stop_if_not_finite(step)
        data: Any = getattr(self.trainer, "datamodule", None)
        wandb = [logger for logger in self.loggers if isinstance(logger, WandbLogger)]
        checkpoint[RECORD] = {
            "version": __version__,
            "model": self._trained_config,
            "method": self.method,
            "sampler": repr(self.sampler),
            "position_loss": self.position_loss,
            "class_weights": self.class_weights,
            "distillation": self.teacher.record if self.teacher else None,
            "seed": self.seed,
            "compute": asdict(self.compute),
            "precision": self.trainer.precision,
            "data": data.config() | {"classes": data.class_names} if isinstance(data, ImageData) else None,
            "wandb": {"id": str(wandb[0].version), "project": str(wandb[0].name)} if wandb else None,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume from a checkpoint of another model, or with a changed teacher, and go on counting."""
        self.compute = Compute(**checkpoint.get(RECORD, {}).get("compute", {}))
        saved, config = checkpoint.get(RECORD, {}).get("model", {}), self._trained_config
        if saved not in (config, self.model.config):  # earlier versions saved the latter
            changed = sorted(key for key in saved | config if saved.get(key) != config.get(key))
            raise UserError(f"the checkpoint to resume from is of another model: {', '.join(changed)} differ")
        if self.teacher:
            self.teacher.check_same(checkpoint[RECORD].get("distillation"))

    @property
    def _is_replicated(self) -> bool:
        return self.trainer.world_size > 1 and not is_sharded(self.trainer.strategy)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End a run whose budget is used up. Stop if a loss was not finite.

        That is checked in the steps in which the loggers wait for the device anyway.
        """
        self._stop_at_the_end()
        if is_logged(self.trainer):
            self._stop_if_not_finite(self._not_finite.step())
            self._drawn = {step: drawn for step, drawn in self._drawn.items() if step >= self.global_step - 1}

    def _stop_if_not_finite(self, step: int) -> None:
        """Raise a UserError if ``step`` is not -1 in this or in another process."""
        steps = [step]
        if self.trainer.world_size > 1:
            steps = self.all_gather(torch.tensor(step, device=self.device)).tolist()  # type: ignore[union-attr]
        if max(steps) < 0:
            return
        step, rank = min((step, rank) for rank, step in enumerate(steps) if step >= 0)
        drawn = self._orders_of_all(step)
        order = "|".join(map(str, drawn[rank % len(drawn)]))
        last = [callback for callback in self.trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
        paths = [*(callback.best_model_path for callback in last), self.trainer.ckpt_path]
        good = next((path for path in paths if path and Path(path).exists()), None)
        raise UserError(
            f"the loss or the weights were not finite in step {step} (process {rank}), whose order was {order}; "
            + (f"the last good checkpoint is {good}" if good else "there is no checkpoint yet")
            + ": lower model.optimizer.lr, or clip with --trainer.gradient_clip_val 1"
        )

    def _accuracy(self, logits: Tensor, labels: Tensor) -> Tensor:
        classes = self.model.config["num_classes"]
        return multiclass_accuracy(logits, labels, classes, average="micro", validate_args=False)


def position_cross_entropy(position_logits: Tensor) -> Tensor:
    """Cross-entropy between each step's predicted and true position (arXiv 2407.04513, section 3.3).

    position_logits: [steps, batch, positions]. Returns [steps], the means over the batch.
    """
    steps, batch, _ = position_logits.shape
    targets = torch.arange(steps, device=position_logits.device).repeat_interleave(batch)
    return F.cross_entropy(position_logits.flatten(0, 1), targets, reduction="none").view(steps, batch).mean(dim=1)


class FirstNonFiniteStep:
    """The first step whose loss was NaN or infinite, kept on the device until it is asked for."""

    def __init__(self) -> None:
        self._step: Tensor | None = None

    def note(self, loss: Tensor, step: int) -> None:
        """Check the loss of a step, a scalar."""
        # Made on the device: a copy from the host would wait for it.
        before = torch.full((), -1, device=loss.device) if self._step is None else self._step
        self._step = torch.where((before < 0) & ~loss.detach().isfinite(), step, before)

    def step(self) -> int:
        """The step, or -1 if all losses were finite; waits for the device."""
        return -1 if self._step is None else int(self._step)


def all_finite(parameters: Iterable[nn.Parameter]) -> bool:
    """Whether the parameters, or this process's shards of them, are finite; waits for the device."""
    local = [value.to_local() if isinstance(value, DTensor) else value.detach() for value in parameters]
    held = [value.detach() for value in local if value.numel()]  # Some processes hold nothing of a small parameter.
    return bool(torch.nn.utils.get_total_norm(held, norm_type=math.inf).isfinite())
