"""The LightningModule that fine-tunes a vision transformer, drawing an order for every step."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.functional.classification import multiclass_accuracy

from layershuffle.data.preprocessing import Preprocess
from layershuffle.errors import UserError
from layershuffle.models.create import create_model
from layershuffle.models.model import Head, Output
from layershuffle.models.position import Position
from layershuffle.orders.order import Order, seeded
from layershuffle.orders.samplers import OrderSampler, Shuffle, call
from layershuffle.training.distributed import idle_parameters, is_sharded, joined, orders_per_process, shard
from layershuffle.training.finite import FirstBadStep, all_finite
from layershuffle.training.instancewise import InstanceWise, expected_loss
from layershuffle.training.last_checkpoint import LastCheckpoint
from layershuffle.version import __version__

Schedule = Literal["constant", "linear", "cosine"]
PAPER_ADAM: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-6}
"""The optimizer's arguments in arXiv 2407.04513, section 4."""
RECORD = "layershuffle"
"""The key under which a checkpoint says how to make its model and data again."""


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
        num_classes: the classes to tell apart; train.py takes it from the data.
        pretrained: false for random weights, true for timm's own, or a path to weights of the same backbone: a timm
            state dict or a checkpoint of train.py.
        position: what the layers make of the position they hold: nothing, encode it, or predict it.
        sampler: draws the order of each training step.
        position_loss: how the position cross-entropies of the steps join the classification loss: their "sum"
            (the paper, section 3.3) or their "mean" (the authors' code).
        optimizer: makes the optimizer; by default the paper's (section 4).
        schedule: of the learning rate: "constant" (the paper), "linear" (the authors' code) or "cosine", to zero.
        warmup_steps: steps over which the learning rate first rises linearly.
        head: how a distilled DeiT classifies: the "average" of its two heads, or the "class" token's alone.
        positions: how many positions the model can tell apart, by default as many as its own order has steps.
        depth: the model's layers, by default as many as the backbone has. A pretrained one gives its first so many.
        order: the model's own order, which it runs unless told otherwise and whose steps the sampler draws from: an
            order's text, or a name such as ``cycle(6)``, ``cycle-rev(6)`` or ``sequence(6)`` (parameter sharing, arXiv
            2104.06022), ``sandwich(3)`` or ``sublayers`` (arXiv 1911.03864). By default the layers in sequence.
        choices: orders in the same form, from which each image learns to take one (IOT, arXiv 2103.03457); the sampler
            has then nothing to do.
        instancewise: how that is learnt.
        compile: compile the layers, see OrderedViT.compile. The first steps take longer; no order adds to that.
        timm_args: what else ``timm.create_model`` takes, such as img_size or drop_path_rate.
        orders_per_process: whether each process of several draws orders of its own. By default they do with DDP, so
            that an update averages several orders, and don't with sharded strategies, which can't.
        seed: decides the orders, together with the step and the process; train.py sets it to seed_everything.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        pretrained: bool | str = False,
        position: Position = "none",
        sampler: OrderSampler = Shuffle(),  # noqa: B008 (it has no state)
        position_loss: Literal["sum", "mean"] = "sum",
        optimizer: OptimizerCallable = lambda params: torch.optim.Adam(params, **PAPER_ADAM),
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        head: Head = "average",
        positions: int | None = None,
        depth: int | None = None,
        order: str | None = None,
        choices: list[str] | None = None,
        instancewise: InstanceWise = InstanceWise(),  # noqa: B008 (it is frozen)
        compile: bool = False,
        timm_args: dict[str, Any] | None = None,
        orders_per_process: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        timm_args = (timm_args or {}) | ({} if depth is None else {"depth": depth})
        self.model = create_model(
            name,
            num_classes,
            position,
            pretrained,
            positions=positions,
            head=head,
            order=order,
            choices=choices,
            **timm_args,
        )
        self.preprocess = Preprocess(*self.model.image_format)
        self.sampler = sampler
        self.instancewise = instancewise
        self.position_loss = position_loss
        self.optimizer = optimizer
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.orders_per_process = orders_per_process
        # Lightning's own mean over processes forgets that they have not as many images each.
        self.means: Any = nn.ModuleDict({name: MeanMetric() for name in ("sequential", "arbitrary", "loss")})
        self.seed = seed
        self._bad = FirstBadStep()
        if warmup_steps < 0:
            raise UserError(f"warmup_steps is a number of steps from 0 up, not {warmup_steps}")
        # A sampler without a name, or whose orders the model can't run, should fail here and not after the data.
        method_name(sampler, position)
        self.draw(0)
        if compile:
            self.model.compile()

    _own_orders = True
    _is_spread = False
    _copying: torch.cuda.Stream | None = None

    @property
    def method(self) -> str:
        """The name of the method, such as ``layershuffle-position``."""
        name = method_name(self.sampler, self.model.config["position"], self.model.config.get("order"))
        return f"instancewise{name.removeprefix(self.sampler.method)}" if self.model.choice else name

    def draw(self, step: int, rank: int = 0) -> Order:
        """The order of training step ``step`` on process ``rank``, of the steps of the model's own order."""
        order = self.sampler.draw(len(self.model.order), self.seed, step, rank, self._progress(step))
        return order.over(self.model.order)

    _planned_steps: float = 0

    def on_train_start(self) -> None:
        """Note how many steps the whole training takes. Asked for any earlier, workers would read ahead too soon."""
        self._planned_steps = self.trainer.estimated_stepping_batches

    def _progress(self, step: int) -> float:
        """The share of the planned steps that are done at ``step``, from 0 to 1, or 0 where there is no plan."""
        return min(1.0, step / self._planned_steps) if self._planned_steps > 0 else 0.0

    def setup(self, stage: str) -> None:
        """Settle which processes draw orders; raises UserError if the strategy can't do what is asked."""
        orders = [self.draw(0), *(self.model.choice.orders if self.model.choice else ())]
        self._own_orders = orders_per_process(self.trainer.strategy, self.orders_per_process, self.model, orders)

    def configure_model(self) -> None:
        """Spread the model over the processes where the strategy leaves that to the module."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not self._is_spread:
            shard(self.model, self.device_mesh["data_parallel"])  # type: ignore[index]
            self._is_spread = True

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Let what is due between two steps be done: of all of Lightning's hooks, only this one comes then."""
        if self.trainer.training:
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, LastCheckpoint):
                    callback.between_steps(self.trainer)
        return batch

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copy a batch from the host while the GPU is at the step before, on a stream that this step waits for."""
        if device.type != "cuda":
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        self._copying = self._copying or torch.cuda.Stream(device)
        with torch.cuda.stream(self._copying):
            moved = super().transfer_batch_to_device(batch, device, dataloader_idx)
        computing = torch.cuda.current_stream(device)
        computing.wait_stream(self._copying)
        for part in moved:
            part.record_stream(computing)  # else its memory would be reused as soon as the copying is done with it
        return moved

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Make dropout, like the orders, a function of the seed, the step and the process: a resumed run repeats it."""
        key = (self.seed, "dropout", self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(seeded(*key).random() * 2**53))

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """Resize and normalise on the device."""
        images, labels = batch
        return self.preprocess(images).to(next(self.model.parameters()).dtype), labels

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """One batch in one order. Batches that are accumulated into one update share the order, as one batch would."""
        images, labels = batch
        if self.model.choice:
            key = (self.seed, self.global_step, self.global_rank)
            loss, measured = expected_loss(self.model, self.model.choice, images, labels, self.instancewise, key)
            self._log(len(labels), lambda: {"loss": loss} | measured)
            return self._joined(loss, self.model.choice.orders)
        order = self.draw(self.global_step, self.global_rank if self._own_orders else 0)
        output = self.model(images, order)
        loss = classification = F.cross_entropy(output.logits, labels)
        measured = {"classification_loss": classification}
        if output.position_logits is not None:
            per_step = position_cross_entropy(output.position_logits)
            measured["position_loss"] = per_step.sum() if self.position_loss == "sum" else per_step.mean()
            loss = classification + measured["position_loss"]
        self._log(len(labels), lambda: {"loss": loss, "accuracy": self._accuracy(output, labels)} | measured)
        return self._joined(loss, [order])

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """What no process ran stays as it is, as in a single process, whatever the optimizer makes of zeros."""
        if self._is_replicated and not self.model.choice:
            processes = range(self.trainer.world_size if self._own_orders else 1)
            for parameter in idle_parameters(self.model, [self.draw(self.global_step, rank) for rank in processes]):
                parameter.grad = None

    def _log(self, images: int, measured: Callable[[], dict[str, Tensor]]) -> None:
        """Log ``measured`` as train/..., in the steps that the loggers take: in others it would be time for nothing.

        Without prog_bar, for which Lightning waits for the device at every step; train.py's bar shows the loss anyway.
        """
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        done = self.global_step + 1
        if self.trainer.is_last_batch or done == self.trainer.max_steps or (every and done % every == 0):
            self.log_dict({f"train/{name}": value.detach() for name, value in measured().items()}, batch_size=images)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Sequential and arbitrary-order accuracy side by side, always; and ``val/loss``, which selects the model.

        val/loss is the cross-entropy of the classes under the orders that the method trains with, or that the images
        choose. The random orders depend on the seed and the batch alone, so every epoch is judged by the same ones.
        """
        images, labels = batch
        if not len(labels) and not is_sharded(self.trainer.strategy):
            return  # the last batch can have fewer images than there are processes
        own, key = self.model.order, (self.seed, "validation", batch_idx)
        progress = self._progress(self.global_step)
        orders = {
            "sequential": own,
            "arbitrary": own.shuffled(seeded(*key)),
            "val": call(self.sampler.at_validation, len(own), seeded(*key), progress).over(own),
        }
        outputs: dict[Order, Output] = {order: self.model(images, order) for order in set(orders.values())}
        found = {kind: self._accuracy(outputs[orders[kind]], labels) for kind in ("sequential", "arbitrary")}
        judged = self.model(images) if self.model.choice else outputs[orders["val"]]
        found["loss"] = F.cross_entropy(judged.logits, labels) if len(labels) else judged.logits.sum()
        for name, value in found.items():
            # A mean would leave out what is not a number, and the best model could be one that fails.
            self.means[name].update(value.nan_to_num(nan=math.inf, posinf=math.inf), len(labels))
            self.log(f"val/{name}", self.means[name], prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over all trainable parameters, and the learning rate's schedule by steps."""
        try:
            optimizer = self.optimizer(parameter for parameter in self.parameters() if parameter.requires_grad)
        except ValueError as error:
            raise UserError(f"the optimizer can't be made: {error}") from error
        _fuse(optimizer)
        # A fused optimizer can unscale the gradients of 16-mixed by itself, without waiting for the device; Lightning
        # doesn't clip the gradients of one that can, even where nothing is scaled.
        told = getattr(optimizer, "_step_supports_amp_scaling", False)
        scaled, clipped = self.trainer.precision == "16-mixed", bool(self.trainer.gradient_clip_val)
        if scaled and clipped and told:
            raise UserError(
                "a fused optimizer's gradients can't be clipped in 16-mixed: use bf16-mixed, or fused=false"
            )
        fused = all(group.get("fused") for group in optimizer.param_groups)
        optimizer._step_supports_amp_scaling = scaled and not clipped and fused  # type: ignore[attr-defined]
        if self.trainer.max_epochs == self.trainer.max_steps == -1 and self.schedule != "constant":
            raise UserError(f"a {self.schedule} schedule needs an end to reach zero at: set max_epochs or max_steps")

        def factor(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / (self.warmup_steps + 1)
            if step == 0 or self.schedule == "constant":
                return 1.0
            # Asked for any earlier, workers would read ahead before a resumed run knows where it stands.
            total = self.trainer.estimated_stepping_batches
            done = min(1.0, (step - self.warmup_steps) / max(1, total - self.warmup_steps))
            return 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Record, in plain values, what it takes to make the model and its data again; refuse weights gone wrong."""
        bad = self._bad.step()
        if bad < 0 and not all_finite(self.parameters()):
            bad = max(0, self.global_step - 1)
        self._stop_if_not_finite(bad)
        data: Any = getattr(self.trainer, "datamodule", None)
        checkpoint[RECORD] = {
            "version": __version__,
            "model": self.model.config,
            "method": self.method,
            "sampler": repr(self.sampler),
            "position_loss": self.position_loss,
            "seed": self.seed,
            "precision": self.trainer.precision,
            "data": data.config() if hasattr(data, "config") else None,
            "wandb": next((_run(logger) for logger in self.loggers if isinstance(logger, WandbLogger)), None),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on from a checkpoint of another model."""
        saved = checkpoint.get(RECORD, {}).get("model")
        if saved != self.model.config:
            changed = {key for key in self.model.config if (saved or {}).get(key) != self.model.config[key]}
            raise UserError(
                "the checkpoint to resume from is of another model"
                + (f": {', '.join(sorted(changed))} differ" if saved else " (it is not one of train.py's)")
            )

    @property
    def _is_replicated(self) -> bool:
        return self.trainer.world_size > 1 and not is_sharded(self.trainer.strategy)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop if a loss was not finite, at the steps at which the loggers wait for the device anyway."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and self.trainer.global_step % every == 0:
            self._stop_if_not_finite(self._bad.step())

    def _stop_if_not_finite(self, step: int) -> None:
        """Raise a UserError if ``step`` is one, here or in another process; -1 is none."""
        steps = [step]
        if self.trainer.world_size > 1:
            steps = self.all_gather(torch.tensor(step, device=self.device)).tolist()  # type: ignore[union-attr]
        bad = [(step, rank) for rank, step in enumerate(steps) if step >= 0]
        if not bad:
            return
        step, rank = min(bad)
        several = "|".join(map(str, self.model.choice.orders)) if self.model.choice else None
        order = several or self.draw(step, rank if self._own_orders else 0)
        saved = [at.best_model_path for at in self.trainer.checkpoint_callbacks if isinstance(at, LastCheckpoint)]
        good = next((path for path in [*saved, self.trainer.ckpt_path] if path and Path(path).exists()), None)
        raise UserError(
            f"the loss or the weights were not finite in step {step} (process {rank}), whose order was {order}; "
            + (f"the last good checkpoint is {good}" if good else "there is no checkpoint yet")
            + ": lower model.optimizer.lr, or clip with --trainer.gradient_clip_val 1"
        )

    def _joined(self, loss: Tensor, orders: Sequence[Order]) -> Tensor:
        self._bad.note(loss, self.global_step)
        return joined(loss, idle_parameters(self.model, orders)) if self._is_replicated else loss

    def _accuracy(self, output: Output, labels: Tensor) -> Tensor:
        classes = output.logits.shape[-1]
        return multiclass_accuracy(output.logits, labels, classes, average="micro", validate_args=False)


def _fuse(optimizer: torch.optim.Optimizer) -> None:
    """Update all parameters in one kernel, where the optimizer can and was not told how to.

    Not left to the optimizer's constructor, as that makes it unscale gradients by itself, which rules out clipping.
    """
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)):
        return
    for group in optimizer.param_groups:
        told = group["fused"] is not None or any(group.get(way) for way in ("foreach", "capturable", "differentiable"))
        if not told and all(parameter.device.type in ("cpu", "cuda") for parameter in group["params"]):
            group["fused"] = True


def _run(logger: WandbLogger) -> dict[str, str]:
    return {"id": str(logger.version), "project": str(logger.name)}


def position_cross_entropy(position_logits: Tensor) -> Tensor:
    """Cross-entropy of each step's predicted position with the one it holds (arXiv 2407.04513, section 3.3).

    position_logits: [steps, batch, positions]. Returns [steps], each the mean over the batch.
    """
    steps, batch, _ = position_logits.shape
    targets = torch.arange(steps, device=position_logits.device).repeat_interleave(batch)
    return F.cross_entropy(position_logits.flatten(0, 1), targets, reduction="none").view(steps, batch).mean(dim=1)
