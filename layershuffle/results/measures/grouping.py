"""Which layers run side by side, and how long an image then takes."""

from dataclasses import dataclass
from typing import ClassVar

from layershuffle.errors import UserError
from layershuffle.results.record import Measure, Results, register
from layershuffle.results.table import Table


@register
@dataclass(frozen=True)
class Grouping(Measure):
    """The search for groups of layers that run side by side.

    Attributes:
        milliseconds: the time of one image by the order, whose groups are merged.
        chosen: the order that was chosen, as text.
    """

    name: ClassVar[str] = "grouping"
    protocols: ClassVar[tuple[str, ...]] = ("grouping",)
    milliseconds: dict[str, float]
    chosen: str

    def check(self, results: Results) -> None:
        """Raise a UserError if an order that was scored has no time."""
        for score in results.of("grouping"):
            if score.order not in self.milliseconds:
                raise UserError(f"grouping has no time for {score.order}")

    def tables(self, results: Results) -> dict[str, Table]:
        """The best order of each number of steps, with time and accuracy."""
        rows = []
        for score in results.of("grouping"):
            loss = "infinite" if score.loss is None else f"{score.loss:.4f}"
            time = f"{self.milliseconds[str(score.order)]:#.3g}"
            rows.append([str(score.order), str(score.variant["steps"]), time, f"{100 * score.top1:.2f}", loss])
        return {"grouping": Table(["merged", "steps", "ms, 1 image", "top-1 %", "loss"], rows)}
