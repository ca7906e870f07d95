"""How alike the activations after every two steps are."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from layershuffle import typed_json
from layershuffle.errors import UserError
from layershuffle.results.figures.drawing import heat_map
from layershuffle.results.record import Measure, Results, register
from layershuffle.results.table import Table


@register
@dataclass(frozen=True)
class Cosine(Measure):
    """Cosine similarities of the activations after every two steps.

    Attributes:
        matrix: the similarities, -1 to 1, [steps, steps].
    """

    name: ClassVar[str] = "cosine"
    picture: ClassVar[str] = "cosine"
    caption: ClassVar[str] = "Cosine similarity of the activations after every two steps (arXiv 2407.09298)."
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
        # The cosine of two equal activations may be rounded to a little more than 1.
        if any(abs(value) > 1.001 for row in self.matrix for value in row):
            raise UserError("cosine has similarities beyond 1")

    def figure(self, results: Results, title: str = "") -> Figure:
        """A heat map."""
        steps = range(len(self.matrix))
        return heat_map(
            np.array(self.matrix), steps, title, "cosine similarity of the activations", "after step", ".2f"
        )

    def data(self, results: Results) -> tuple[str, Table]:
        """The matrix."""
        header = ["after step", *map(str, range(len(self.matrix)))]
        rows = []
        for step, similarities in enumerate(self.matrix):
            cells = [f"{value:.4f}" for value in similarities]
            rows.append([str(step), *cells])
        return "cosine similarity", Table(header, rows)
