"""What a layer puts out at each position."""

from dataclasses import dataclass
from typing import ClassVar

from layershuffle.errors import UserError
from layershuffle.orders.order import Order
from layershuffle.results.record import Measure, Results, register


@register
@dataclass(frozen=True)
class Representations(Measure):
    """Outputs of one layer in a plane, of images that each ran in a random order.

    Attributes:
        orders: the order that each image ran in, as text.
        layer: whose outputs they are.
        positions: for each output the position at which the layer ran.
        plane: for each output its place (x, y) in UMAP's plane, which has no unit.
    """

    name: ClassVar[str] = "representations"
    orders: list[str]
    layer: int
    positions: list[int]
    plane: list[tuple[float, float]]

    @property
    def steps(self) -> int:
        """How many positions there are."""
        return len(Order(self.orders[0]))

    def check(self, results: Results) -> None:
        """Raise a UserError if there isn't a position for each point, or a position isn't one of the order's."""
        if not self.orders or not self.plane or len(self.positions) != len(self.plane):
            raise UserError(f"representations has {len(self.positions)} positions for {len(self.plane)} points")
        if not all(0 <= position < self.steps for position in self.positions):
            raise UserError(f"representations has positions beyond the {self.steps} of the order")
