"""How many images of each class were classified rightly in some orders, and what the others were taken for."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from layershuffle.errors import UserError
from layershuffle.plurals import counted
from layershuffle.results.measures.kind_of_orders import KindOfOrders

Mistakes = dict[tuple[int, int], float]
"""How many images, by (class, class that they were taken for)."""


@dataclass(frozen=True)
class OrderCounts(KindOfOrders):
    """How the images were classified in the orders of one protocol and variant, all of them counted together.

    Attributes:
        right: of each class, how many images were classified rightly.
        confused: the most frequent mistakes, as (class, class that it was taken for, images).
        balanced_accuracy: the mean of the accuracies of the classes that have images, 0 to 1. None in older files, as
            the next.
        macro_f1: the mean F1 of the classes that have images or are predicted, 0 to 1.
    """

    # Its name in results files, which is older than the word "samples".
    samples: int = field(metadata={"json": "draws"})
    right: list[int]
    confused: list[tuple[int, int, int]]
    balanced_accuracy: float | None = None
    macro_f1: float | None = None

    def images_by_mistake(self) -> Mistakes:
        """How many images were taken for another class, as the mean over the orders."""
        return {(true, predicted): images / self.samples for true, predicted, images in self.confused}

    def matrix(self) -> list[list[int]]:
        """How many images there are by class (row) and by predicted class (column); each counts for each order."""
        classes = len(self.right)
        matrix = [[0] * classes for _ in range(classes)]
        for index, images in enumerate(self.right):
            matrix[index][index] = images
        for true, predicted, images in self.confused:
            matrix[true][predicted] = images
        return matrix

    def worst_mistakes(self) -> dict[int, tuple[int, int]]:
        """For each class that has mistakes the class that it is most often taken for, and how many images are."""
        worst: dict[int, tuple[int, int]] = {}
        # The mistakes are sorted, the most frequent first, so the first one of a class is its worst.
        for true, predicted, images in self.confused:
            worst.setdefault(true, (predicted, images))
        return worst

    def check(self, images: Sequence[int]) -> None:
        """Raise a UserError unless these can be counts of classes that have so many ``images`` each."""
        classes = counted(len(images), "class")
        if self.samples < 1 or len(self.right) != len(images):
            raise UserError(f"by_class doesn't count {classes} in {self.protocol} orders")
        for right, present in zip(self.right, images):
            # An image counts once for each order.
            if not 0 <= right <= self.samples * present:
                raise UserError(f"by_class counts {counted(right, 'image')} as right of a class that has {present}")
        for share in (self.balanced_accuracy, self.macro_f1):
            if share is not None and not 0 <= share <= 1:
                raise UserError(f"by_class has a mean over classes that is no share: {share}")
        for true, predicted, count in self.confused:
            if not (0 <= true < len(images) and 0 <= predicted < len(images)):
                raise UserError(f"by_class counts class {true} taken for {predicted}, of {classes}")
            if not 0 < count <= self.samples * images[true]:
                raise UserError(
                    f"by_class counts {counted(count, 'mistake')} of a class that has {counted(images[true], 'image')}"
                )
