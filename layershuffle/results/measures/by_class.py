"""Which classes are taken for which."""

from dataclasses import dataclass, field
from typing import ClassVar

from layershuffle.errors import UserError
from layershuffle.results.record import Measure, Results, register
from layershuffle.results.score import Variant


@dataclass(frozen=True)
class OrderCounts:
    """How the images were classified in the orders of one protocol and variant, all of them counted together.

    Attributes:
        protocol: the family of orders.
        variant: what distinguishes these orders from others of the family.
        samples: how many orders they are.
        right: of each class, how many images were classified rightly.
        confused: the most frequent mistakes, as (class, class that it was taken for, images).
    """

    protocol: str
    variant: Variant
    samples: int = field(metadata={"json": "draws"})
    right: list[int]
    confused: list[tuple[int, int, int]]

    def matrix(self) -> list[list[int]]:
        """Images by class (row) and by predicted class (column)."""
        classes = len(self.right)
        matrix = [[0] * classes for _ in range(classes)]
        for index, images in enumerate(self.right):
            matrix[index][index] = images
        for true, predicted, images in self.confused:
            matrix[true][predicted] = images
        return matrix


@register
@dataclass(frozen=True)
class ByClassCounts(Measure):
    """How the images of each class were classified.

    Attributes:
        images: of each class, how many images there are.
        orders: the counts for each kind of order.
    """

    name: ClassVar[str] = "by_class"
    images: list[int]
    orders: list[OrderCounts]

    def check(self, results: Results) -> None:
        """Raise a UserError if a class has no name, or something is counted of a class that there isn't."""
        classes = len(self.images)
        names = results.data.classes
        if names is not None and len(names) != classes:
            raise UserError(f"by_class counts {classes} classes, but the data has {len(names)} names")
        if any(images < 0 for images in self.images):
            raise UserError("by_class counts fewer than 0 images")
        for counts in self.orders:
            _check_counts(counts, classes)


def _check_counts(counts: OrderCounts, classes: int) -> None:
    if counts.samples < 1 or len(counts.right) != classes or any(images < 0 for images in counts.right):
        raise UserError(f"by_class doesn't count {classes} classes in {counts.protocol} orders")
    for true, predicted, images in counts.confused:
        if not (0 <= true < classes and 0 <= predicted < classes and images >= 0):
            raise UserError(f"by_class counts {images} images of class {true} taken for {predicted}, of {classes}")
