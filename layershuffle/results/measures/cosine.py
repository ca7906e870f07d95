"""How alike the activations after every two steps are."""

from dataclasses import dataclass
from typing import Any, ClassVar

from layershuffle.errors import UserError
from layershuffle.results import typed_json
from layershuffle.results.record import Measure, Results, register


@register
@dataclass(frozen=True)
class Cosine(Measure):
    """Cosine similarities of the activations after every two steps.

    Attributes:
        matrix: the similarities, -1 to 1, [steps, steps].
    """

    name: ClassVar[str] = "cosine"
    matrix: list[list[float]]

    @classmethod
    def from_json(cls, content: Any) -> "Cosine":
        """Read the matrix, which stands in the file by itself."""
        return cls(typed_json.read(list[list[float]], content, cls.name))

    def to_json(self) -> list[list[float]]:
        """The matrix by itself."""
        return self.matrix

    def check(self, results: Results) -> None:
        """Raise a UserError if the matrix isn't square, or no matrix of cosines."""
        if not self.matrix or any(len(row) != len(self.matrix) for row in self.matrix):
            raise UserError("cosine is not a square matrix")
        # Rounding can lead a little beyond 1.
        if any(abs(value) > 1.001 for row in self.matrix for value in row):
            raise UserError("cosine has similarities beyond 1")
