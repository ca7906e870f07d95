"""Which classes are taken for which: tables, and a picture."""

import math
import textwrap
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from layershuffle.errors import UserError
from layershuffle.plurals import counted
from layershuffle.results.figures.drawing import COLOURS, annotate, legend_below, panels
from layershuffle.results.levels import MOST_FREQUENT, is_skewed
from layershuffle.results.record import Measure, ReportSection, Results, register
from layershuffle.results.score import Variant
from layershuffle.results.table import Rows, Table
from layershuffle.results.tables.wording import name_of

MAX_IN_TABLE = 100
"""With more classes, the table lists the most frequent mistakes in place of the whole confusion matrix."""
MAX_IN_PICTURE = 30
"""With more classes, the picture has bars for the most frequent mistakes in place of the whole confusion matrix."""
MEANS = ("top-1 %", "balanced accuracy %", "macro F1 %")
"""The columns of the table of means in which every class has the same weight, with the accuracy beside them."""
MISTAKES = 15
"""How many mistakes are drawn as bars."""


Mistakes = dict[tuple[int, int], float]
"""How many images, by (class, class that they were taken for)."""


@dataclass(frozen=True)
class OrderCounts:
    """How the images were classified in the orders of one protocol and variant, all of them counted together.

    Attributes:
        protocol: the family of orders.
        variant: what distinguishes these orders from others of the family.
        samples: how many orders they are.
        right: of each class, how many images were classified rightly.
        confused: the most frequent mistakes, as (class, class that it was taken for, images).
        balanced_accuracy: the mean of the accuracies of the classes that have images, 0 to 1. None in older files, as
            the next.
        macro_f1: the mean F1 of the classes that have images or are predicted, 0 to 1.
    """

    protocol: str
    variant: Variant
    samples: int = field(metadata={"json": "draws"})
    right: list[int]
    confused: list[tuple[int, int, int]]
    balanced_accuracy: float | None = None
    macro_f1: float | None = None

    @property
    def name(self) -> str:
        """What tables call these orders."""
        return name_of((self.protocol, *self.variant.values()))

    def images_by_mistake(self) -> Mistakes:
        """How many images were taken for another class, as the mean over the orders."""
        return {(true, predicted): images / self.samples for true, predicted, images in self.confused}

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
            _check_counts(counts, self.images)

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
        top1 = sum(counts.right) / counts.samples / max(1, sum(self.images))
        return top1, counts.balanced_accuracy, counts.macro_f1

    @property
    def most_frequent(self) -> int:
        """The class with the most images."""
        return self.images.index(max(self.images))

    def levels(self, results: Results) -> dict[str, float]:
        """The accuracy of always naming the most frequent class, if that is clearly higher than chance."""
        share = self.images[self.most_frequent] / max(1, sum(self.images))
        return {MOST_FREQUENT: 100 * share} if is_skewed(share, results) else {}

    # --- Tables ---------------------------------------------------------------------------------------------

    def tables(self, results: Results) -> dict[str, Table]:
        """The accuracy of each class, and of skewed data the means in which every class has the same weight."""
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
        header = ["class", "images"]
        for counts in self.orders:
            mistake = "most often taken for" if len(self.orders) == 1 else f"{counts.name}: taken for"
            header += [counts.name, mistake]
        names = self.class_names(results)
        mistakes = [_worst_mistakes(counts) for counts in self.orders]
        rows = []
        for index, images in enumerate(self.images):
            if not images:
                continue
            accuracies = []
            row = [names[index], str(images)]
            for counts, worst in zip(self.orders, mistakes):
                in_all_orders = counts.samples * images
                accuracy = counts.right[index] / in_all_orders
                predicted, count = worst.get(index, (0, 0))
                accuracies.append(accuracy)
                row.append(f"{100 * accuracy:.2f}")
                row.append(f"{names[predicted]} {100 * count / in_all_orders:.0f}%" if count else "")
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
        names = self.class_names(results)
        if self._has_bars:
            return self._draw_mistakes(names, title)
        columns = min(2, len(self.orders))
        rows = math.ceil(len(self.orders) / columns)
        side = max(4.2, 1.6 + 0.26 * len(names))
        figure = Figure(figsize=(columns * side + 0.8, rows * side + 0.4), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        shown = [textwrap.shorten(name, 20) for name in names]
        for axis, counts in zip(axes, self.orders):
            image = self._draw_matrix(axis, counts, shown)
        axes[0].set_ylabel("class")
        for axis in axes[len(self.orders) :]:
            axis.remove()
        figure.colorbar(image, ax=figure.axes, label="images of the class, %", shrink=0.7)
        figure.suptitle(title, fontsize="medium")
        return figure

    def _draw_matrix(self, axis: Axes, counts: OrderCounts, names: list[str]) -> AxesImage:
        images = counts.samples * np.array(self.images)
        # A class without test images has an empty row, not a division by 0.
        shares = 100 * np.array(counts.matrix()) / np.maximum(1, images)[:, None]
        image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        # Smaller shares would read 0.
        for row, column in np.argwhere(shares >= 0.5):
            share = shares[row, column]
            colour = "white" if share > 60 else "black"
            axis.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=7)
        axis.set(title=textwrap.shorten(counts.name, 40), xlabel="taken for")
        turned = 90 if max(map(len, names)) > 3 else 0
        # A class's name is no formula, even with dollars in it.
        axis.set_xticks(range(len(names)), names, rotation=turned, fontsize=7, parse_math=False)
        axis.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
        return image

    def _draw_mistakes(self, names: list[str], title: str) -> Figure:
        """Bars for the most frequent mistakes, as numbers of images: a percentage of one image would say nothing."""
        images_by_order = [counts.images_by_mistake() for counts in self.orders]
        mistakes = self._most_frequent_mistakes(images_by_order)
        figure, (axis,) = panels(1, 7.6, 1.2 + 0.2 * len(mistakes) * len(self.orders), title, grid=False)
        thickness = 0.84 / len(self.orders)
        for index, (counts, images_of) in enumerate(zip(self.orders, images_by_order)):
            shift = (index - (len(self.orders) - 1) / 2) * thickness
            rows = [row + shift for row in range(len(mistakes))]
            widths = [images_of.get(mistake, 0) for mistake in mistakes]
            label = textwrap.shorten(counts.name, 30)
            axis.barh(rows, widths, thickness, color=COLOURS[index % len(COLOURS)], label=label)
            for row, width, (true, _) in zip(rows, widths, mistakes):
                # Of very many mistakes, files lack the rare ones: no bar doesn't mean that there were none.
                if width:
                    annotate(axis, f"{width:.3g} of {self.images[true]}", width, row, (3, 0), ha="left", va="center")
        labels = []
        for true, predicted in mistakes:
            labels.append(f"{textwrap.shorten(names[true], 30)} as {textwrap.shorten(names[predicted], 30)}")
        axis.set_yticks(range(len(mistakes)), labels, fontsize=9, parse_math=False)
        axis.set(xlabel="images of the class that are taken for the other", xlim=(0, None))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        # Without a margin, and the most frequent mistake at the top.
        axis.set_ylim(max(len(mistakes), 1) - 0.5, -0.5)
        legend_below(figure)
        return figure

    def _most_frequent_mistakes(self, images_by_order: list[Mistakes]) -> list[tuple[int, int]]:
        """The mistakes to draw as bars, the most frequent first."""

        def rank(mistake: tuple[int, int]) -> tuple[float, ...]:
            """Small for frequent mistakes: in the first kind of order, then in the next, then of small classes."""
            frequencies = [-images_of.get(mistake, 0) for images_of in images_by_order]
            return *frequencies, self.images[mistake[0]], *mistake

        return sorted(set().union(*images_by_order), key=rank)[:MISTAKES]


def _worst_mistakes(counts: OrderCounts) -> dict[int, tuple[int, int]]:
    """For each class the one that it is most often taken for, and how many images are."""
    worst: dict[int, tuple[int, int]] = {}
    # The mistakes are sorted, the most frequent first, so the first one of a class is its worst.
    for true, predicted, images in counts.confused:
        worst.setdefault(true, (predicted, images))
    return worst


def _check_counts(counts: OrderCounts, images: list[int]) -> None:
    if counts.samples < 1 or len(counts.right) != len(images):
        raise UserError(f"by_class doesn't count {counted(len(images), 'class')} in {counts.protocol} orders")
    for right, present in zip(counts.right, images):
        if not 0 <= right <= counts.samples * present:
            raise UserError(f"by_class counts {counted(right, 'image')} as right of a class that has {present}")
    for share in (counts.balanced_accuracy, counts.macro_f1):
        if share is not None and not 0 <= share <= 1:
            raise UserError(f"by_class has a mean over classes that is no share: {share}")
    for true, predicted, count in counts.confused:
        if not (0 <= true < len(images) and 0 <= predicted < len(images)):
            raise UserError(f"by_class counts class {true} taken for {predicted}, of {counted(len(images), 'class')}")
        if not 0 < count <= counts.samples * images[true]:
            raise UserError(
                f"by_class counts {counted(count, 'mistake')} of a class that has {counted(images[true], 'image')}"
            )
