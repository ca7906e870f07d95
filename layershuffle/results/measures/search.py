"""How an order was searched for."""

from dataclasses import dataclass
from typing import ClassVar

from layershuffle.errors import UserError
from layershuffle.results.record import Measure, Results, register


@dataclass(frozen=True)
class SearchStep:
    """A step of a search.

    Attributes:
        order: the best order after this step, as text.
        loss: its mean cross-entropy on the images searched on, in nats, or None where it isn't finite.
    """

    order: str
    loss: float | None


@register
@dataclass(frozen=True)
class Search(Measure):
    """The search for an order.

    Attributes:
        strategy: "greedy", "climb" or "well-trained".
        images: how many images were searched on.
        exponents: the heavy-tail exponent of each layer, with the strategy "well-trained".
        trace: the steps of the search, with the other strategies.
    """

    name: ClassVar[str] = "search"
    strategy: str
    images: int
    exponents: list[float] | None = None
    trace: list[SearchStep] | None = None

    def check(self, results: Results) -> None:
        """Raise a UserError if it has neither or both of a trace and exponents."""
        if (self.exponents is None) == (self.trace is None):
            raise UserError("search has either the trace of a search or the layers' exponents")
