"""What every objective has: a loss, and the defaults of everything else that a method with its own loss can change."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from layershuffle.checkpoints.metadata import CheckpointMetadata
from layershuffle.data import ImageData
from layershuffle.errors import UserError
from layershuffle.models.model import OrderedViT
from layershuffle.orders.order import Order
from layershuffle.training.image_mean import ImageAccuracy, accuracy


class StepKey(NamedTuple):
    """What decides the randomness of a training step: the run's seed, the step, and the rank of the process."""

    seed: int
    step: int
    rank: int


@dataclass(frozen=True)
class StepLoss:
    """The loss of a training step.

    Attributes:
        total: what is minimised, a scalar: the mean over the images of the batch.
        logits: [batch, classes], of which the training accuracy is computed.
        terms: the scalars that the total is made of, by the names under which they are logged.
    """

    total: Tensor
    logits: Tensor
    terms: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """What a training step minimises. A subclass overrides ``loss``, and of the rest what differs from the default.

    Most losses of your own are subclasses of ``Classification``, which has the options that recipes set.

    An objective is a module so that its buffers follow the model to its device and precision. It has no parameters:
    checkpoints hold those of the model alone.

    Attributes:
        method: the method's name in results, or None to name it after the sampler.
        allows_sharding: whether all processes always run the same layers, as strategies that shard them need it.
        takes_several_labels: whether the labels of an image say of each class whether it shows it, or are one class.
    """

    method: str | None = None
    allows_sharding = True
    takes_several_labels = False

    # --- Before the first step, in this sequence ------------------------------------------------------------

    def check_model(self, model: OrderedViT) -> None:
        """Raise a UserError if the model can't be trained with this objective. Runs when the module is made."""
        if model.choice:
            raise UserError(
                "a model with choices learns which order suits an image: add --model.objective InstanceWise, or leave "
                "out --model.choices"
            )

    def check_labels(self, data: ImageData) -> None:
        """Raise a UserError if the images have several labels each and the objective takes one, or the other way."""
        if data.has_several_labels == self.takes_several_labels:
            return
        if data.has_several_labels:
            raise UserError(f"the images of {data.label} have several labels each: add --model.objective MultiLabel")
        raise UserError(
            f"{type(self).__name__} learns several labels for each image, but those of {data.label} have one: leave "
            "out --model.objective, or with ImageTable say how several stand there, --data.label_separator ';'"
        )

    def load(self, model: OrderedViT) -> None:
        """Read files that the objective needs besides the images. Runs before the images are read."""

    def read_data(self, data: ImageData | None, num_classes: int) -> None:
        """Look at the data of the training, which are None if they are no ``ImageData``."""

    def start(self, model: OrderedViT) -> None:
        """Follow the model, which now is on its device and has its precision. Runs before the first step."""

    # --- In every step --------------------------------------------------------------------------------------

    def fixed_orders(self, model: OrderedViT) -> tuple[Order, ...] | None:
        """The orders that every image of every batch runs in, or None for those that the sampler samples."""
        return None

    def loss(
        self, model: OrderedViT, images: Tensor, labels: Tensor, orders: Sequence[Order], key: StepKey
    ) -> StepLoss:
        """The loss of a training step.

        Args:
            model: the model that is trained.
            images: [batch, channels, height, width], normalised, augmented and mixed.
            labels: int64 [batch], or probabilities [batch, classes] if the images are mixed; see also
                ``takes_several_labels``.
            orders: ``fixed_orders``, or one order for each of several equal parts of the batch.
            key: decides everything that is random, see ``orders.order.seeded``.
        """
        raise NotImplementedError

    def validation_loss(self, model: OrderedViT, images: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """``val/loss``, which selects the best model: by default the cross-entropy, a mean over the images.

        Args:
            model: the model that is trained, in evaluation mode.
            images: [batch, channels, height, width], normalised. With sharded strategies a batch may be empty.
            labels: int64 [batch].
            logits: [batch, classes], in the order that the sampler chose for the validation.
        """
        return mean_cross_entropy(logits, labels)

    def batch_scores(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """How well the model does on a training batch, by the names under which it is logged: by default "accuracy".

        logits: [batch, classes]. labels: int64 [batch], those that the images had before they were mixed.
        """
        return {"accuracy": accuracy(logits, labels)}

    def validation_score(self) -> Metric:
        """What ``val/sequential`` and ``val/arbitrary`` are, each in its order: a metric of logits and labels.

        The higher it is, the better. By default it is the accuracy.
        """
        return ImageAccuracy()

    def end_validation(self, score: Metric) -> None:
        """Look at a whole validation, before its checkpoint is saved: ``score`` has seen it in sequential order."""

    # --- In checkpoints -------------------------------------------------------------------------------------

    def metadata(self) -> dict[str, Any]:
        """What a checkpoint tells of the objective: fields of ``CheckpointMetadata``."""
        return {}

    def check_resumed(self, metadata: CheckpointMetadata) -> None:
        """Raise a UserError if a run whose ``metadata`` these are can't go on with this objective."""


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean cross-entropy, or 0 for an empty batch, whose mean would be NaN.

    logits: [batch, classes]. labels: int64 [batch].
    """
    if len(labels):
        return F.cross_entropy(logits, labels)
    # The sum of nothing, which has a device, a dtype and a gradient.
    return logits.sum()
