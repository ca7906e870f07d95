"""How much layers change what the model classifies by, at each position."""

from dataclasses import dataclass
from typing import ClassVar

from layershuffle.errors import UserError
from layershuffle.orders.order import Order
from layershuffle.results.record import Measure, Results, register


@register
@dataclass(frozen=True)
class Contributions(Measure):
    """How much each step changes what the model classifies by, of images that each ran in a random order.

    Attributes:
        orders: the order that each image ran in, as text.
        token: what the model classifies by: "class token" or "mean of the patch tokens".
        added: for each image the norm of each step's change.
        before: for each image the norm before each step.
        changes: for each image each step's change as a share of the norm. Files of version 0.2 and before have
            nothing but this and the orders, files since don't have it.
    """

    name: ClassVar[str] = "contributions"
    orders: list[str]
    token: str | None = None
    added: list[list[float]] | None = None
    before: list[list[float]] | None = None
    changes: list[list[float]] | None = None

    @property
    def values(self) -> list[list[float]]:
        """For each image what was measured of each step: ``added``, or in older files ``changes``."""
        return self.added or self.changes or []

    def check(self, results: Results) -> None:
        """Raise a UserError if there isn't an order for each image, and a number for each of its steps."""
        if not self.orders or len(self.values) != len(self.orders):
            raise UserError(f"contributions has {len(self.orders)} orders for {len(self.values)} images")
        for text, *rows in zip(self.orders, self.values, self.before or self.values):
            steps = len(Order(text))
            if any(len(row) != steps for row in rows):
                raise UserError(f"contributions doesn't have a number for each step of the order {text}")
