"""How long an image takes, by the number of layers that run."""

from dataclasses import dataclass
from typing import Any, ClassVar

from layershuffle.errors import UserError
from layershuffle.results import typed_json
from layershuffle.results.record import Measure, Results, register


@register
@dataclass(frozen=True)
class SecondsPerImage(Measure):
    """How long an image takes.

    Attributes:
        seconds: the time by the number of layers that run.
    """

    name: ClassVar[str] = "seconds_per_image"
    seconds: dict[int, float]

    @classmethod
    def from_json(cls, content: Any) -> "SecondsPerImage":
        """Read the times, which stand in the file by themselves."""
        return cls(typed_json.read(dict[int, float], content, cls.name))

    def to_json(self) -> dict[str, float]:
        """The times by themselves."""
        return dict(typed_json.write(self.seconds))

    def check(self, results: Results) -> None:
        """Raise a UserError if a number of layers that was scored has no time."""
        for score in results.of("pruned"):
            if score.variant.get("kept") not in self.seconds:
                raise UserError(f"seconds_per_image has no time for the layers kept of {score}")
