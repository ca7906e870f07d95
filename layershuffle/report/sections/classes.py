"""The accuracy of each class, and what each method's first model takes it for."""

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from layershuffle.report.page import Picture, Section, Table, TableCell, slug
from layershuffle.report.sections.wording import Rows, heading, texts
from layershuffle.report.setups import SetupResults
from layershuffle.results import Results
from layershuffle.results.levels import MOST_FREQUENT
from layershuffle.results.measures import ByClassCounts
from layershuffle.results.measures.by_class import MEANS

MAX_CLASSES = 50
"""How many rows the table of classes has at most."""

Counted = dict[str, tuple[Results, ByClassCounts]]
"""Results with their counts by class, by the path of the file."""


def classes(setup: SetupResults) -> Section | None:
    """Tables of the methods, and the confusions of the first model of each."""
    methods: dict[str, Counted] = {}
    for method in setup.main_methods:
        files = _counted(setup, method)
        if files:
            methods[method] = files
    if not methods or ByClassCounts.section is None:
        return None
    parts: list[Table | Picture] = []
    # Only where some classes have many more images than others does it make a difference.
    balanced = _balanced(methods)
    if balanced:
        parts.append(balanced)
    parts.append(_table(methods))
    # The pictures of several methods would fill most of the page.
    folded = len(methods) > 1
    parts += [_confusion(method, files, folded) for method, files in methods.items()]
    return Section(heading(ByClassCounts.section.title, setup), [], parts)


def _counted(setup: SetupResults, method: str) -> Counted:
    """The results of a method that hold counts by class."""
    files: Counted = {}
    for run in setup.runs_of(method):
        for name, results in run.files.items():
            counts = results.measure(ByClassCounts)
            if counts:
                files[name] = results, counts
    return files


def _first(methods: dict[str, Counted]) -> tuple[Results, ByClassCounts]:
    """The first file of the first method, which says what the classes are."""
    first_files = next(iter(methods.values()))
    return next(iter(first_files.values()))


def _alike(methods: dict[str, Counted]) -> dict[str, list[ByClassCounts]]:
    """The counts of each method, of models that were tested on the same images: only these can be averaged."""
    _, first_counts = _first(methods)
    alike = {}
    for method, files in methods.items():
        alike[method] = [counts for _, counts in files.values() if counts.images == first_counts.images]
    return alike


def _balanced(methods: dict[str, Counted]) -> Table | None:
    """Of skewed data the means in which every class has the same weight, a row for each method and kind of order."""
    first_results, first_counts = _first(methods)
    levels = first_counts.levels(first_results)
    # Only skewed data has the level of the most frequent class.
    if not levels:
        return None
    rows: Rows = []
    for method, several in _alike(methods).items():
        by_order: dict[str, list[tuple[float, float, float]]] = {}
        for counts in several:
            for order in counts.orders:
                means = counts.means(order)
                if means:
                    by_order.setdefault(order.name, []).append(means)
        # The numbers of a row are means over the method's models.
        for order_name, of_models in by_order.items():
            cells = [f"{100 * fmean(shares):.2f}" for shares in zip(*of_models)]
            rows.append([f"{method}, {order_name}", *cells])
    caption = (
        f"The most frequent class has {levels[MOST_FREQUENT]:.2f}% of the images. In balanced accuracy and macro F1 "
        "each class counts the same. Means over seeds."
    )
    return Table(caption, ["", *MEANS], rows) if rows else None


def _table(methods: dict[str, Counted]) -> Table:
    """A row for each class, those first that some method classifies worst."""
    first_results, first_counts = _first(methods)
    names = first_counts.class_names(first_results)
    images = first_counts.images
    # The accuracies of the classes by method.
    sequential: dict[str, list[float]] = {}
    arbitrary: dict[str, list[float]] = {}
    for method, alike in _alike(methods).items():
        sequential[method] = _accuracies(alike, "sequential")
        arbitrary[method] = _accuracies(alike, "arbitrary, fixed")

    def lowest(index: int) -> float:
        """The lowest accuracy that a method has of this class, in either kind of order."""
        columns = [*sequential.values(), *arbitrary.values()]
        return min((accuracies[index] for accuracies in columns if accuracies), default=0)

    # A class without test images has no accuracy.
    present = [index for index, count in enumerate(images) if count]
    shown = sorted(present, key=lowest)[:MAX_CLASSES]
    rows: Rows = []
    for index in shown:
        row: list[TableCell | str] = [names[index], str(images[index])]
        for method in methods:
            text = ""
            if sequential[method]:
                text = f"{sequential[method][index]:.2f}"
            notes = []
            if arbitrary[method]:
                notes.append(f"arbitrary {arbitrary[method][index]:.2f}")
            row.append(TableCell(text, notes))
        rows.append(row)

    caption = "Top-1 accuracy in percent in sequential order, and below it in arbitrary orders. Means over seeds."
    if len(shown) < len(present):
        caption += (
            f" These are the {len(shown)} of {len(present)} classes with test images that some method classifies worst."
        )
    return Table(caption, ["class", "images", *methods], rows, folded=len(rows) > 20)


def _accuracies(several: Sequence[ByClassCounts], order: str) -> list[float]:
    """The accuracy of each class in percent, means over models; empty if they didn't run in such an order."""
    by_model = []
    for counts in several:
        orders = counts.of(order)
        if orders is None:
            continue
        accuracies = []
        for right, images in zip(orders.right, counts.images):
            # An image counts once for each order. A class without images has 0, and not a division by 0.
            in_all_orders = max(1, orders.samples * images)
            accuracies.append(100 * right / in_all_orders)
        by_model.append(accuracies)
    return [fmean(of_class) for of_class in zip(*by_model)]


def _confusion(method: str, files: Counted, folded: bool) -> Picture:
    """The confusions of a method's first model."""
    name, (results, counts) = next(iter(files.items()))
    caption = f"{method}, seed {results.model.seed}. {counts.caption_for(results)}"
    data_caption, table = counts.data(results)
    data = Table(data_caption, table.header, texts(table))
    draw = partial(counts.figure, results)
    file_name = slug(counts.picture, name.removesuffix(".json"))
    return Picture(file_name, caption, draw, data, folded)
