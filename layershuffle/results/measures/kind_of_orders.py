"""Which orders a measure is about, where it takes several of the same kind together."""

from dataclasses import dataclass

from layershuffle.results.score import Variant
from layershuffle.results.tables.wording import name_of


@dataclass(frozen=True)
class KindOfOrders:
    """The orders of one protocol and variant, which are samples of the same thing. Measures derive from it.

    Attributes:
        protocol: the family of orders.
        variant: what distinguishes these orders from others of the family.
        samples: how many orders they are.
    """

    protocol: str
    variant: Variant
    samples: int

    @property
    def name(self) -> str:
        """What tables call these orders."""
        return name_of((self.protocol, *self.variant.values()))
