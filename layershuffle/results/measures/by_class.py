"""How the images of each class were classified: the accuracy of each class, and which are taken for which."""

from dataclasses import dataclass
from typing import ClassVar

from matplotlib.figure import Figure

from layershuffle.errors import UserError
from layershuffle.plurals import counted
from layershuffle.results.levels import MOST_FREQUENT, is_skewed
from layershuffle.results.measures.confusion import draw_matrices, draw_mistakes
from layershuffle.results.measures.order_counts import OrderCounts
from layershuffle.results.record import Measure, ReportSection, Results, register
from layershuffle.results.table import Rows, Table

MAX_IN_TABLE = 100
"""With more classes, the table lists the most frequent mistakes in place of the whole confusion matrix."""
MAX_IN_PICTURE = 30
"""With more classes, the picture has bars for the most frequent mistakes in place of the whole confusion matrix."""
MEANS = ("top-1 %", "balanced accuracy %", "macro F1 %")
"""The columns of the table of means in which every class has the same weight, with the accuracy beside them."""


@register
@dataclass(frozen=True)
class ByClassCounts(Measure):
    """How the images of each class were classified.

    Attributes:
        images: of each class, how many images there are.
        orders: the counts for each kind of order.
    """

    name: ClassVar[str] = "by_class"
    picture: ClassVar[str] = "confusion"
    caption: ClassVar[str] = "Which classes are taken for which."
    section: ClassVar[ReportSection | None] = ReportSection("Accuracy of each class")
    images: list[int]
    orders: list[OrderCounts]

    def check(self, results: Results) -> None:
        """Raise a UserError if a class has no name, or something is counted of a class that there isn't."""
        classes = len(self.images)
        if not classes or not self.orders:
            raise UserError("by_class counts nothing")
        names = results.data.classes
        if names is not None and len(names) != classes:
            raise UserError(
                f"by_class counts {counted(classes, 'class')}, but the data has {counted(len(names), 'name')}"
            )
        if any(images < 0 for images in self.images):
            raise UserError("by_class counts fewer than 0 images")
        for counts in self.orders:
            counts.check(self.images)

    def class_names(self, results: Results) -> list[str]:
        """What each class is called: its name where the data has names, else its number."""
        return results.data.classes or [str(index) for index in range(len(self.images))]

    def of(self, name: str) -> OrderCounts | None:
        """The counts of the orders that tables call so, if there are any."""
        for counts in self.orders:
            if counts.name == name:
                return counts
        return None

    def means(self, counts: OrderCounts) -> tuple[float, float, float] | None:
        """What MEANS names, 0 to 1, of one kind of order; None for older files, which lack the last two."""
        if counts.balanced_accuracy is None or counts.macro_f1 is None:
            return None
        # Without any image the accuracy is 0, and not a division by 0.
        top1 = sum(counts.right) / counts.samples / max(1, sum(self.images))
        return top1, counts.balanced_accuracy, counts.macro_f1

    @property
    def most_frequent(self) -> int:
        """The class with the most images."""
        return self.images.index(max(self.images))

    def levels(self, results: Results) -> dict[str, float]:
        """The accuracy of always naming the most frequent class, in percent, if that is clearly higher than chance."""
        share = self.images[self.most_frequent] / max(1, sum(self.images))
        return {MOST_FREQUENT: 100 * share} if is_skewed(share, results) else {}

    # --- Tables ---------------------------------------------------------------------------------------------

    def tables(self, results: Results) -> dict[str, Table]:
        """The accuracy of each class, and of skewed data the means in which every class has the same weight."""
        # Only skewed data has the level of the most frequent class.
        if not self.levels(results):
            return {"classes": self.accuracies(results)}
        return {"balanced": self.balanced(results), "classes": self.accuracies(results)}

    def files(self, results: Results) -> dict[str, Table]:
        """The accuracy of each class, and the confusion matrix."""
        return {"classes": self.accuracies(results), "confusion": self.confusion(results)}

    def balanced(self, results: Results) -> Table:
        """The top-1 accuracy, and the means in which every class has the same weight; empty for older files."""
        rows = []
        for counts in self.orders:
            shares = self.means(counts)
            if shares:
                rows.append([counts.name, *(f"{100 * share:.2f}" for share in shares)])
        return Table(["order", *MEANS], rows)

    def accuracies(self, results: Results) -> Table:
        """The accuracy of each class, and what it is mistaken for most often. The lowest accuracies come first."""
        # Each kind of order has two columns.
        header = ["class", "images"]
        for counts in self.orders:
            header.append(counts.name)
            header.append("most often taken for" if len(self.orders) == 1 else f"{counts.name}: taken for")

        names = self.class_names(results)
        worst_mistakes = [counts.worst_mistakes() for counts in self.orders]
        # Each row with the accuracies in it as numbers, by which the rows are sorted.
        rows: list[tuple[list[float], list[str]]] = []
        for index, images in enumerate(self.images):
            # A class without test images has no accuracy.
            if not images:
                continue
            accuracies = []
            row = [names[index], str(images)]
            for counts, worst in zip(self.orders, worst_mistakes):
                # An image counts once for each order.
                in_all_orders = counts.samples * images
                accuracy = counts.right[index] / in_all_orders
                accuracies.append(accuracy)
                row.append(f"{100 * accuracy:.2f}")
                mistake = ""
                if index in worst:
                    predicted, count = worst[index]
                    mistake = f"{names[predicted]} {100 * count / in_all_orders:.0f}%"
                row.append(mistake)
            rows.append((accuracies, row))
        rows.sort(key=lambda pair: pair[0])  # by accuracy in the first kind of order, then in the next
        return Table(header, [row for _, row in rows])

    def confusion(self, results: Results) -> Table:
        """For each kind of order how many images of each class (row) were taken for each class (column).

        Of more classes than MAX_IN_TABLE there is a row for each of the most frequent mistakes instead.
        """
        names = self.class_names(results)
        rows: Rows = []
        if len(names) > MAX_IN_TABLE:
            for counts in self.orders:
                for true, predicted, images in counts.confused:
                    rows.append([counts.name, names[true], names[predicted], str(images)])
            return Table(["order", "class", "taken for", "images"], rows)

        for counts in self.orders:
            for name, row in zip(names, counts.matrix()):
                rows.append([counts.name, name, *map(str, row)])
        return Table(["order", "class", *names], rows)

    def data(self, results: Results) -> tuple[str, Table]:
        """The confusion matrix."""
        return "images", self.confusion(results)

    # --- Picture --------------------------------------------------------------------------------------------

    def caption_for(self, results: Results) -> str:
        """What the matrix shows, or of many classes the bars."""
        if self._has_bars:
            return (
                "The most frequent mistakes. A as B: images of class A are taken for class B. 3 of 4: that happens to "
                "3 of the 4 images of class A, on average over the orders."
            )
        return f"{self.caption[:-1]}: of the images of each class (row) the percentage taken for each (column)."

    @property
    def _has_bars(self) -> bool:
        """Whether there are too many classes to draw a matrix."""
        return len(self.images) > MAX_IN_PICTURE

    def figure(self, results: Results, title: str = "") -> Figure:
        """A confusion matrix for each kind of order; of many classes the most frequent mistakes."""
        draw = draw_mistakes if self._has_bars else draw_matrices
        return draw(self.orders, self.images, self.class_names(results), title)
