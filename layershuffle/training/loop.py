"""What happens in a training: a step, and what comes before it, between two steps, and at the end.

``FineTuningLoop.training_step`` is the place to begin. Each hook calls parts that have a file of their own in this
folder; ``FineTuner`` in ``training.module`` makes them of the user's options.
"""

from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torchvision.transforms import v2

from layershuffle.data import ImageData, Preprocess
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order, seeded
from layershuffle.training import continuing, metadata, non_finite, step_means
from layershuffle.training.accumulation import weight_in_update
from layershuffle.training.averaging import check_averages, put_averages, refuse_averages, speed_up_averages
from layershuffle.training.budget import Budget
from layershuffle.training.callbacks import is_logged
from layershuffle.training.checkpointing import LastCheckpoint
from layershuffle.training.compute import layers_run
from layershuffle.training.device_copies import BatchCopier
from layershuffle.training.directions import check_monitors
from layershuffle.training.distributed import (
    is_replicated,
    is_sharded,
    samples_own_orders,
    shard,
    unused_parameters,
    with_all_parameters,
)
from layershuffle.training.method import method_name
from layershuffle.training.non_finite import FirstNonFiniteLoss
from layershuffle.training.objectives import Objective, StepKey
from layershuffle.training.optimizer import make_optimizer
from layershuffle.training.plan import Plan
from layershuffle.training.pretrained_head import match_head
from layershuffle.training.resumed_optimizer import ResumedOptimizer
from layershuffle.training.schedule import Schedule, make_scheduler, set_rates_again
from layershuffle.training.step_file import BatchPlace
from layershuffle.training.step_means import StepMeans
from layershuffle.training.step_orders import StepOrders
from layershuffle.training.trainable import Trainable
from layershuffle.training.validation import Validation


class FineTuningLoop(pl.LightningModule):
    """The hooks that Lightning calls in the course of a training, in the sequence in which they run.

    Args:
        model: what is trained.
        pretrained: where its weights came from, see ``create_model``.
        trainable: which parameters are trained, and how fast.
        mix: mixes the images of a batch with each other, if anything does.
        objective: what is minimised.
        optimizer: makes the optimizer.
        schedule: how the learning rate changes.
        budget: how long the training lasts.
        orders: samples the orders of each step.
        orders_per_process: whether each process samples its own; None if the strategy decides it.
        label: what tables and figures call the method, by default its name.
    """

    def __init__(
        self,
        *,
        model: OrderedViT,
        pretrained: bool | str,
        trainable: Trainable,
        mix: v2.Transform | None,
        objective: Objective,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        budget: Budget,
        orders: StepOrders,
        orders_per_process: bool | None,
        label: str | None,
    ) -> None:
        super().__init__()
        # What the options have chosen.
        self.model = model
        self.trainable = trainable
        self.preprocess = Preprocess(*model.image_format)
        self.mix = mix
        self.objective = objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.budget = budget
        self.compute = budget.compute
        self.orders = orders
        self.orders_per_process = orders_per_process
        self.sampler = orders.sampler
        self.seed = orders.seed
        self.label = label

        # What watches the training.
        self.step_means = StepMeans()
        self.validation = Validation(objective)
        self._first_non_finite = FirstNonFiniteLoss()
        self._copier = BatchCopier()

        # What one hook leaves to another.
        self._pretrained = pretrained
        self._objective_is_loaded = False
        self._resumed_optimizer = ResumedOptimizer()

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
        """Read the files that the objective needs, such as a teacher's weights, unless they have been read.

        ``setup`` calls this. A caller who wants a wrong path to fail before any image is read calls it earlier.
        """
        if not self._objective_is_loaded:
            self.objective.load(self.model)
            self._objective_is_loaded = True

    def setup(self, stage: str) -> None:
        """Preprocess as the data say, and decide which processes sample their own orders.

        Raises a UserError if the strategy can't run the orders, or the objective doesn't fit the data.
        """
        # Only ImageData resizes its images. Those of any other data module must have the model's size already.
        datamodule = getattr(self.trainer, "datamodule", None)
        data = datamodule if isinstance(datamodule, ImageData) else None
        if data is not None:
            self.objective.check_labels(data)
            self.preprocess = data.prepare_for(*self.model.image_format)

        # Where each process samples orders of its own, an update averages over more of them. Processes among which the
        # layers are sharded can't: they must all run the same layers.
        first_orders = self.orders.sample_parts(step=0, rank=0)
        if samples_own_orders(self.trainer.strategy, self.orders_per_process, self.objective, first_orders):
            self.orders.processes = self.trainer.world_size
        else:
            self.orders.processes = 1

        # Evaluation needs neither the objective's files nor a budget.
        if stage != "fit":
            return
        # A resumed run gets its head from the checkpoint, and a second fit() keeps the one that the first has trained.
        if data is not None and not self.trainer.ckpt_path:
            match_head(self.model, self._pretrained, data.class_names, self.seed)
            self._pretrained = False
        self.load_objective()
        check_monitors(self.trainer.callbacks)  # type: ignore[attr-defined]
        self.objective.read_data(data, self.model.config["num_classes"])
        self.budget.take_limits(self.trainer)

    def configure_model(self) -> None:
        """Shard the model for ModelParallelStrategy, which leaves that to the module."""
        # Lightning calls this again before a test.
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
        # Lightning is about to give it the state of the checkpoint that the run goes on from, if there is one.
        self._resumed_optimizer.check(optimizer)

        self.schedule.check_end(self.budget)
        scheduler = make_scheduler(optimizer, self.schedule, self.budget)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Plan the run, of which the number of steps is known from here on.

        Counting them starts the workers that read images ahead. A resumed run must know by then where it goes on.
        """
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        self.objective.start(self.model)
        speed_up_averages(callbacks)

        # Orders may depend on the progress, which is unknown without the number of steps: sample them again.
        self.orders.forget_all()
        self.budget.plan(self.trainer)
        self.budget.stop_if_used_up(self.trainer)
        # How many steps a budget of layer executions lasts for depends on the orders that will be sampled.
        if not self.budget.ends_the_run:
            check_averages(callbacks, self.budget.planned_steps, self.trainer.max_epochs)

        # The rate of the coming step was set before the number of steps was known, or by another run's options.
        scheduler: Any = self.lr_schedulers()
        self._resumed_optimizer.restore_options(self.trainer.optimizers[0], scheduler)
        set_rates_again(scheduler)

        plan = Plan.of(self.trainer, self.budget, self.schedule, self.orders)
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
        """Copy the next batch to the GPU while the GPU still works on the step before."""
        to_device = partial(super().transfer_batch_to_device, batch, device, dataloader_idx)
        return self._copier.copy(to_device, device)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Resize and normalise on the device."""
        images, labels = batch
        # Some of Lightning's precisions keep the weights themselves in bfloat16.
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

        # Each part of the batch runs in an order of its own. The step decides the orders, so batches that are
        # accumulated into one update share them.
        orders = self.orders.of_batch(step, self.global_rank, len(images))
        key = StepKey(self.seed, step, self.global_rank)
        loss = self.objective.loss(self.model, images, labels, orders, key)

        # What is logged stays on the device until the loggers write. Layer executions count what all processes ran.
        values = {"loss": loss.total, **loss.terms, **self.objective.batch_scores(loss.logits, true_labels)}
        self.step_means.add(values, len(images))
        self.compute.count_batch(len(images) * self.trainer.world_size, self.orders.layers_run(step))
        self._first_non_finite.note(loss.total, BatchPlace(step, self.current_epoch, batch_idx))

        # Lightning runs the backward pass of what is returned. There DDP waits for the gradients of all layers, also of
        # those that no order ran.
        total = loss.total * weight_in_update(self.trainer, batch_idx)
        if is_replicated(self.trainer.strategy):
            total = with_all_parameters(total, self.model, orders)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clear the gradients of layers that no process ran, so that the optimizer skips them; count the update."""
        step = self.global_step
        # DDP has given these layers gradients of zero, with which momentum and weight decay would still move them.
        if is_replicated(self.trainer.strategy):
            for parameter in unused_parameters(self.model, self.orders.of_update(step)):
                parameter.grad = None
        full_steps = self.orders.layers_run(step) / layers_run(self.model.order)
        self.compute.count_update(full_steps)
        self.step_means.log_row(self)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End a run whose budget is used up. Stop if a loss was not finite."""
        self.budget.stop_if_used_up(self.trainer)
        # To read the losses is to wait for the device, which the loggers do in these steps anyway.
        if is_logged(self.trainer):
            non_finite.stop_after(self._first_non_finite.read(), self, self.orders)
            # All losses were finite. If the weights aren't, the error will name the last step and its orders.
            self.orders.forget_before(self.global_step - 1)

    def on_train_epoch_end(self) -> None:
        """Log the losses of the last steps, and the means of the epoch."""
        self.step_means.end_epoch(self)

    def on_fit_end(self) -> None:
        """Give the trainer its limits back."""
        self.budget.give_limits_back(self.trainer)

    # --- Validation -----------------------------------------------------------------------------------------

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the score in sequential and in arbitrary order, and ``val/loss``, which selects the best model."""
        # The last batch may have fewer images than there are processes. Sharded layers still need every process.
        images, labels = batch
        if not len(labels) and not is_sharded(self.trainer.strategy):
            return

        orders = self.orders.for_validation(batch_idx, self.global_step)
        self.validation.add(self.model, images, labels, orders)
        for name, mean in self.validation.means.items():
            self.log(f"val/{name}", mean, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        """Let the objective look at the validation, before its checkpoint is saved and the scores are reset."""
        if not self.trainer.sanity_checking:
            self.objective.end_validation(self.validation.means["sequential"])

    # --- Checkpoints ----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add how to make the model and its data again; refuse to save weights that are not finite."""
        non_finite.check_before_saving(self._first_non_finite, self, self.orders)
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
        self._resumed_optimizer.read(checkpoint)
        self.compute.restore(saved.compute or {})
        self.step_means.restore(checkpoint)
