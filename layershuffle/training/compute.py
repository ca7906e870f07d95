"""What a training costs: images, updates, layer executions and time."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from layershuffle.orders.order import Order
from layershuffle.plurals import counted


@dataclass
class Compute:
    """What a training has used up, over all processes and also before it was stopped and resumed.

    Attributes:
        images: images trained on; one that was seen twice counts twice.
        updates: how often the weights were updated.
        layer_executions: images x layers that they ran through, where half a layer counts as 0.5. Forward and backward
            pass count together. What isn't a layer, such as the embedding, does not count.
        full_steps: the layer executions in units of an update in which every image runs through all layers once.
        seconds: in training steps and waiting for their images, but not in validation; 0 without a ThroughputLogger.
    """

    images: int = 0
    updates: int = 0
    layer_executions: float = 0.0
    full_steps: float = 0.0
    seconds: float = 0.0

    def count_batch(self, images: int, layers: float) -> None:
        """Count so many images, each of which has run through so many layers."""
        self.images += images
        self.layer_executions += images * layers

    def count_update(self, full_steps: float) -> None:
        """Count an update whose images ran through this share of all layers, or more than 1 if some ran twice."""
        self.updates += 1
        self.full_steps += full_steps

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint has saved; fields that it lacks begin from 0."""
        for field in fields(self):
            setattr(self, field.name, saved.get(field.name, field.default))

    def __str__(self) -> str:
        return (
            f"{counted(self.images, 'image')}, {counted(self.updates, 'update')}, "
            f"{counted(round(self.layer_executions), 'layer execution')}, {self.seconds:,.0f} s"
        )


def layers_run(order: Order) -> float:
    """How many layers an order runs. Half a layer counts as 0.5, and each layer of a group as 1."""
    layers = 0.0
    for unit in order.units:
        layers += 0.5 if unit.half else 1.0
    return layers
