"""How a model does on the validation images, in the sequential order and in an arbitrary one."""

from typing import Any

from torch import Tensor, nn

from layershuffle.models.model import OrderedViT, Output
from layershuffle.orders.order import Order
from layershuffle.training.image_mean import ImageMean
from layershuffle.training.objectives import Objective
from layershuffle.training.step_orders import ValidationOrders


class Validation(nn.Module):
    """Validates a model batch by batch.

    Args:
        objective: knows the loss, and what scores the model.

    Attributes:
        means: the score in "sequential" and in "arbitrary" order, by default the accuracy, and the "loss" that selects
            the best model: each over the images of all batches and processes since it was last reset. Lightning resets
            them.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.objective = objective
        # Lightning's own mean over processes ignores that each may have a different number of images.
        self.means: Any = nn.ModuleDict(
            {
                "sequential": objective.validation_score(),
                "arbitrary": objective.validation_score(),
                "loss": ImageMean(),
            }
        )

    def add(self, model: OrderedViT, images: Tensor, labels: Tensor, orders: ValidationOrders) -> None:
        """Validate a batch. Nothing here waits for the device.

        Args:
            model: the model, in evaluation mode.
            images: [batch, channels, height, width], normalised.
            labels: of the batch.
            orders: those in which the batch runs.
        """
        # Some of the orders may be the same, and run once.
        outputs: dict[Order, Output] = {order: model(images, order) for order in dict.fromkeys(orders)}
        selecting_logits = outputs[orders.selecting].logits
        self.means["sequential"].update(outputs[orders.sequential].logits, labels)
        self.means["arbitrary"].update(outputs[orders.arbitrary].logits, labels)
        self.means["loss"].update(self.objective.validation_loss(model, images, labels, selecting_logits), len(labels))
