"""Which layers are kept, and how long what is left takes."""

from dataclasses import dataclass
from typing import ClassVar

from layershuffle.errors import UserError
from layershuffle.results.record import Measure, Results, register


@register
@dataclass(frozen=True)
class Pruning(Measure):
    """The search for the layers to keep.

    Attributes:
        images: how many images were searched on.
        milliseconds: the time per image by the number of layers that run.
        chosen: the order that was chosen, as text.
    """

    name: ClassVar[str] = "prune"
    images: int
    milliseconds: dict[int, float]
    chosen: str

    def check(self, results: Results) -> None:
        """Raise a UserError if a number of layers that was scored has no time."""
        for score in results.of("prune"):
            if score.variant.get("kept") not in self.milliseconds:
                raise UserError(f"prune has no time for the layers kept of {score}")
