"""How a model does on the validation images, in the sequential order and in an arbitrary one."""

import math
from typing import Any

from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_accuracy

from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import Order
from layershuffle.training.image_mean import ImageMean
from layershuffle.training.objectives import Objective
from layershuffle.training.step_orders import ValidationOrders


class Validation(nn.Module):
    """Validates a model batch by batch.

    Attributes:
        means: the accuracy in "sequential" and in "arbitrary" order, and the "loss" that selects the best model: each
            the mean over the images of all batches and processes since it was last reset. Lightning resets them.
    """

    def __init__(self) -> None:
        super().__init__()
        # Lightning's own mean over processes ignores that each may have a different number of images.
        self.means: Any = nn.ModuleDict({name: ImageMean() for name in ("sequential", "arbitrary", "loss")})

    def add(
        self, model: OrderedViT, objective: Objective, images: Tensor, labels: Tensor, orders: ValidationOrders
    ) -> None:
        """Validate a batch. Nothing here waits for the device.

        Args:
            model: the model, in evaluation mode.
            objective: knows the loss.
            images: [batch, channels, height, width], normalised.
            labels: int64 [batch].
            orders: those in which the batch runs.
        """
        # Some of the orders may be the same, and run once.
        outputs: dict[Order, Output] = {order: model(images, order) for order in dict.fromkeys(orders)}
        selecting_logits = outputs[orders.selecting].logits
        values = {
            "sequential": accuracy(outputs[orders.sequential].logits, labels),
            "arbitrary": accuracy(outputs[orders.arbitrary].logits, labels),
            "loss": objective.validation_loss(model, images, labels, selecting_logits),
        }
        for name, value in values.items():
            # NaN is neither better nor worse than another loss, so that such a model could be the best.
            self.means[name].update(value.nan_to_num(nan=math.inf, posinf=math.inf), len(labels))


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """The share of images whose most probable class is their label, a scalar.

    logits: [batch, classes]. labels: int64 [batch].
    """
    # Validating the arguments would wait for the device.
    return multiclass_accuracy(logits, labels, logits.shape[1], average="micro", validate_args=False)
