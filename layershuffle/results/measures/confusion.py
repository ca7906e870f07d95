"""The picture of which classes are taken for which: matrices, or bars where there are too many classes for a matrix."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from layershuffle.results.figures.drawing import annotate, grouped_bars, legend_below, panels
from layershuffle.results.measures.order_counts import Mistakes, OrderCounts

MISTAKES = 15
"""How many mistakes are drawn as bars."""


def draw_matrices(orders: Sequence[OrderCounts], images: Sequence[int], names: Sequence[str], title: str) -> Figure:
    """A confusion matrix for each kind of order, two side by side.

    Args:
        orders: the counts of each kind of order.
        images: of each class, how many images there are.
        names: of the classes.
        title: of the picture.
    """
    columns = min(2, len(orders))
    rows = math.ceil(len(orders) / columns)
    # In inches: room for the names, and for each cell with its number.
    side = max(4.2, 1.6 + 0.26 * len(names))
    figure = Figure(figsize=(columns * side + 0.8, rows * side + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    shown = [textwrap.shorten(name, 20) for name in names]
    for axis, counts in zip(axes, orders):
        image = _draw_matrix(axis, counts, images, shown)
    axes[0].set_ylabel("class")
    # Of an odd number of matrices, the last place stays empty.
    for axis in axes[len(orders) :]:
        axis.remove()
    # All matrices have the same colours, so that the last one stands for them.
    figure.colorbar(image, ax=figure.axes, label="images of the class, %", shrink=0.7)
    figure.suptitle(title, fontsize="medium")
    return figure


def _draw_matrix(axis: Axes, counts: OrderCounts, images: Sequence[int], names: Sequence[str]) -> AxesImage:
    """Draw the matrix of one kind of order, in percent of each class; return the image, which has the colours."""
    images_in_all_orders = counts.samples * np.array(images)
    # A class without test images has an empty row, not a division by 0.
    shares = 100 * np.array(counts.matrix()) / np.maximum(1, images_in_all_orders)[:, None]
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    # Smaller shares would read 0.
    for row, column in np.argwhere(shares >= 0.5):
        share = shares[row, column]
        # Large shares have a dark blue cell.
        colour = "white" if share > 60 else "black"
        axis.text(column, row, f"{share:.0f}", ha="center", va="center", color=colour, fontsize=7)
    axis.set(title=textwrap.shorten(counts.name, 40), xlabel="taken for")
    # Longer names would run into each other.
    rotation = 90 if max(map(len, names)) > 3 else 0
    # A class's name is no formula, even with dollars in it.
    axis.set_xticks(range(len(names)), names, rotation=rotation, fontsize=7, parse_math=False)
    axis.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    return image


def draw_mistakes(orders: Sequence[OrderCounts], images: Sequence[int], names: Sequence[str], title: str) -> Figure:
    """Bars for the most frequent mistakes, with a bar for each kind of order; the arguments as in ``draw_matrices``.

    They are numbers of images: of many classes each has few test images, and a percentage of one would say nothing.
    """
    images_by_order = [counts.images_by_mistake() for counts in orders]
    mistakes = _most_frequent_mistakes(images_by_order, images)
    figure, (axis,) = panels(1, 7.6, 1.2 + 0.2 * len(mistakes) * len(orders), title, grid=False)
    kinds = []
    for counts, images_of in zip(orders, images_by_order):
        widths = [images_of.get(mistake, 0) for mistake in mistakes]
        kinds.append((textwrap.shorten(counts.name, 30), widths))
    labels = []
    for true, predicted in mistakes:
        true_name = textwrap.shorten(names[true], 30)
        predicted_name = textwrap.shorten(names[predicted], 30)
        labels.append(f"{true_name} as {predicted_name}")

    places = grouped_bars(axis, kinds, labels)
    for rows, (_, widths) in zip(places, kinds):
        for row, width, (true, _) in zip(rows, widths, mistakes):
            # Of very many mistakes, files lack the rare ones: no bar doesn't mean that there were none.
            if width:
                annotate(axis, f"{width:.3g} of {images[true]}", width, row, (3, 0), ha="left", va="center")
    axis.set(xlabel="images of the class that are taken for the other", xlim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(figure)
    return figure


def _most_frequent_mistakes(images_by_order: Sequence[Mistakes], images: Sequence[int]) -> list[tuple[int, int]]:
    """The mistakes to draw as bars, the most frequent first."""

    def rank(mistake: tuple[int, int]) -> tuple[float, ...]:
        """Small for frequent mistakes: in the first kind of order, then in the next, then of small classes."""
        true, predicted = mistake
        frequencies = [-images_of.get(mistake, 0) for images_of in images_by_order]
        # The classes at the end give mistakes that are alike in all else the same sequence each time: a set has none.
        return *frequencies, images[true], true, predicted

    mistakes = set().union(*images_by_order)
    return sorted(mistakes, key=rank)[:MISTAKES]
