"""How early exit does: each image stops as soon as the classifier is sure of it."""

from dataclasses import dataclass
from typing import Any, ClassVar

from layershuffle import typed_json
from layershuffle.errors import UserError
from layershuffle.results.record import Measure, Results, register
from layershuffle.results.table import Rows, Table


@dataclass(frozen=True)
class Exit:
    """One rule that says when an image stops, and how the images do that stop by it.

    Attributes:
        rule: "confidence" or "patience".
        threshold: the probability to exceed, or the number of steps for which the predicted class stays the same.
        layers: how many steps an image runs, on average.
        top1: accuracy, 0 to 1.
        top5: accuracy of the five likeliest classes, 0 to 1.
        loss: mean cross-entropy, in nats, or None where it isn't finite.
    """

    rule: str
    threshold: float
    layers: float
    top1: float
    top5: float
    loss: float | None


@register
@dataclass(frozen=True)
class EarlyExits(Measure):
    """Early exit by several rules. ``SecondsPerImage`` has the picture.

    Attributes:
        exits: one for each rule and threshold.
    """

    name: ClassVar[str] = "early_exit"
    exits: list[Exit]

    @classmethod
    def from_json(cls, content: Any) -> "EarlyExits":
        """Read the exits, which stand in the file by themselves."""
        return cls(typed_json.read(list[Exit], content, cls.name))

    def to_json(self) -> list[Any]:
        """The exits by themselves."""
        return list(typed_json.write(self.exits))

    def check(self, results: Results) -> None:
        """Raise a UserError if an accuracy is no share."""
        for stop in self.exits:
            if not (0 <= stop.top1 <= 1 and 0 <= stop.top5 <= 1):
                raise UserError(f"early_exit has {stop}, whose accuracy is no share")

    def table(self, results: Results) -> Table:
        """Accuracy against the mean number of layers run, if all images stop together and if each stops by itself."""
        rows: Rows = []
        # All images stop together.
        for score in results.of("pruned", strategy="first", sequence="original"):
            kept = score.variant["kept"]
            rows.append([f"all after {kept}", f"{kept:.2f}", f"{100 * score.quality:.2f}"])
        # Each image stops by itself.
        rows += self.own_stops()
        return Table(["stop", "layers run", "top-1 %"], rows)

    def own_stops(self) -> Rows:
        """The rows of the table in which each image stops by itself."""
        rows: Rows = []
        for stop in self.exits:
            words = "probability above" if stop.rule == "confidence" else "steps without change:"
            rows.append([f"{words} {stop.threshold}", f"{stop.layers:.2f}", f"{100 * stop.top1:.2f}"])
        return rows

    def tables(self, results: Results) -> dict[str, Table]:
        """The table of all exits."""
        return {"early exit": self.table(results)}
