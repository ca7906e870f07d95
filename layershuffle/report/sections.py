"""What the report says, from results files alone: the conclusion, and section 4 of the paper table by table."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from layershuffle.orders.order import Order
from layershuffle.report import conclusion, curves, paper
from layershuffle.report.collect import SetupResults, comparison, in_papers_sequence
from layershuffle.report.page import Picture, Section, Table, TableCell
from layershuffle.results import Estimate, Measure, Results, estimate, figures, half_width, summarise, tables, total
from layershuffle.results.measures import ByClassCounts, Contributions, Cosine, Representations

Rows = list[list[TableCell | str]]
MADE = (
    "Each number is the mean over seeds. Arbitrary order is read in two ways: a new random order for every batch, and "
    "the mean of some random orders that each ran over all test images."
)
MOST_CLASSES = 50
"""How many rows the table of classes has at most."""
READINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "sequential": ("sequential", {}),
    "arbitrary, per batch": ("arbitrary", {"reading": "per batch"}),
    "arbitrary, fixed": ("arbitrary", {"reading": "fixed"}),
}


def sections(
    setups: Sequence[SetupResults], complaints: Sequence[str], missing_files: Sequence[str] | None = None
) -> list[Section]:
    """All sections for which there are results, then what is missing and how every number was made.

    ``missing_files`` are the results files that the experiment lacks. If it is None, nobody knows what was asked for,
    and every seed of every method is expected.
    """
    made = [summary(setups), table_1(setups), position_accuracy(setups)]
    made += [*map(pruning, setups), *map(every_subset, setups), merged(setups), *map(classes, setups)]
    made += [figure_4(setup, study) for setup in setups for study in (Representations, Contributions)]
    made += [*map(others, setups), everything(setups), missing(setups, complaints, missing_files), provenance(setups)]
    return [section for section in made if section is not None]


def summary(setups: Sequence[SetupResults]) -> Section:
    """What was found in a sentence and a picture for each setup."""
    text: list[str] = []
    parts: list[Table | Picture] = []
    for setup in setups:
        text += filter(None, (conclusion.about(setup), conclusion.found(setup)))
        if bars := conclusion.bars(setup):
            data = Table("top-1 in percent", ["order", "method", "mean", "95% interval, half", "seeds"], [])
            for bar in bars:
                mean, half = f"{100 * bar.accuracy.mean:.2f}", bar.accuracy.ci95
                interval = "" if half is None else f"{100 * half:.2f}"
                data.rows.append([bar.order, bar.method, mean, interval, str(bar.accuracy.models)])
            caption = "top-1 accuracy; lines are 95% intervals."
            draw = partial(curves.bars, bars, setup.levels)
            parts.append(_picture("orders", setup, caption, draw, data))
    return Section("Summary", text, parts)


def table_1(setups: Sequence[SetupResults]) -> Section | None:
    """Sequential and arbitrary order, method by method, beside the paper's where it has such models and data."""
    methods = in_papers_sequence(method for setup in setups for method in setup.samplers)

    def of_setup(setup: SetupResults) -> Rows:
        rows: Rows = []
        for reading, (protocol, variant) in READINGS.items():
            cells = [_beside(estimate(setup.over_seeds(m, protocol, **variant)), setup, protocol, m) for m in methods]
            if any(cell.text != "missing" for cell in cells):
                rows.append([reading, *cells])
        return rows

    rows = _by_setup(setups, of_setup)
    if not rows:
        return None
    own = Table(f"Top-1 accuracy in percent. {MADE} {_meaning(setups, methods)}", ["", *methods], rows)
    in_paper = [(setup.backbone, setup.data) for setup in setups if setup.in_paper]
    if not in_paper:
        return Section("Sequential and arbitrary order", [], [own])
    marked = (
        "✱ marks a difference from the paper's mean that Welch's t test finds at the 5% level. The paper's variance is "
        "that over its five seeds, whose standard deviation is in brackets. Ours includes the test images, as if the "
        "paper had used others, so that fewer differences are marked. A number of one seed is not tested. The paper "
        "draws a new order for every batch."
    )
    theirs = Table("The paper's own, mean (standard deviation) over five seeds.", ["", *paper.METHODS], [])
    for row in dict.fromkeys(key[:3] for key in paper.TABLE_1 if key[:2] in in_paper):
        numbers = [_text(paper.TABLE_1[(*row, method)]) for method in paper.METHODS]
        theirs.rows.append([TableCell(row[2], [f"{row[0]}, {row[1]}"]), *numbers])
    return Section("Table 1: sequential and arbitrary order", [marked], [own, theirs])


def position_accuracy(setups: Sequence[SetupResults]) -> Section | None:
    """How often the layers predict their position."""

    def of_setup(setup: SetupResults) -> Rows:
        rows: Rows = []
        for method in setup.methods:
            for reading, (protocol, variant) in READINGS.items():
                scores = setup.over_seeds(method, protocol, **variant)
                if found := estimate(scores, lambda score: score.position_accuracy):
                    rows.append([f"{method}, {reading}", tables.percent(found)])
        return rows

    rows = _by_setup(setups, of_setup)
    if not rows:
        return None
    text = "Percent of the positions that the layers predict rightly."
    if any(setup.in_paper for setup in setups):
        text += f" The paper reports {paper.POSITION_ACCURACY} (section 4.1)."
    return Section("Position prediction", [text], [Table(_meaning(setups), ["", "right, %"], rows)])


def pruning(setup: SetupResults) -> Section | None:
    """Figures 1b and 1c."""
    points = curves.pruned(setup)
    if len({point.kept for point in points}) < 2:
        return None
    caption = "accuracy by the number of layers kept, random ones"
    if any(point.method.startswith("reduced-depth") for point in points):
        caption += (
            " unless the model was refined at that depth (reduced-depth: its first layers, those it was refined with)"
        )
    caption += "."
    if any(point.accuracy.std is not None for point in points):
        caption += " Means over seeds; bands are one sample standard deviation."
    title = "Fewer layers (figures 1b and 1c)" if setup.in_paper else "Fewer layers"
    quote = [f"The paper: {paper.PRUNED}"] if (setup.backbone, setup.data) == ("ViT-B/16", "ImageNet-1k") else []
    return Section(_heading(title, setup), quote, [_curves("pruning", setup, points, caption)])


def every_subset(setup: SetupResults) -> Section | None:
    """Beyond figure 1b: all subsets."""
    points = curves.all_subsets(setup)
    if not points:
        return None
    caption = (
        "the mean accuracy over every choice of k layers, in original sequence. Means over seeds; bands are one sample "
        "standard deviation."
    )
    return Section(_heading("Every subset of the layers", setup), [], [_curves("landscape", setup, points, caption)])


def merged(setups: Sequence[SetupResults]) -> Section | None:
    """Models whose layers come from several others, beside those."""

    def of_setup(setup: SetupResults) -> Rows:
        rows: Rows = []
        for method in setup.methods:
            if method.endswith("-merged"):
                for name, (protocol, variant) in READINGS.items():
                    pair = method.removesuffix("-merged"), method
                    found = [tables.percent(estimate(setup.over_seeds(each, protocol, **variant))) for each in pair]
                    rows.append([f"{method}, {name}", *found])
        return rows

    rows = _by_setup(setups, of_setup)
    if not rows:
        return None
    text = "Each layer comes at random from one of the models that the same method trained with different seeds."
    if any(setup.in_paper for setup in setups):
        text += " The paper's first version (arXiv 2407.04513v1) found no loss of accuracy."
    table = Table(f"Top-1 in percent. {_meaning(setups)}", ["", "sources", "merged"], rows)
    return Section("Merged models", [text], [table])


def classes(setup: SetupResults) -> Section | None:
    """The accuracy of each class, and what each method's first model takes it for."""
    files = {
        method: {name: results for run in setup.of(method) for name, results in run.files.items() if _counted(results)}
        for method in setup.samplers
    }
    files = {method: found for method, found in files.items() if found}
    if not files:
        return None
    first = next(iter(next(iter(files.values())).values()))
    names, images = tables.class_names(first), _counted(first)
    columns = {
        method: [
            _class_accuracies([results for results in found.values() if _counted(results) == images], order)
            for order in ("sequential", "arbitrary, fixed")
        ]
        for method, found in files.items()
    }
    rows: Rows = []
    present = [index for index, count in enumerate(images) if count]

    def lowest(index: int) -> float:
        return min((each[index] for both in columns.values() for each in both if each), default=0)

    shown = sorted(present, key=lowest)[:MOST_CLASSES]
    for index in shown:
        row: list[TableCell | str] = [names[index], str(images[index])]
        for sequential, arbitrary in columns.values():
            notes = [f"arbitrary {arbitrary[index]:.2f}"] if arbitrary else []
            row.append(TableCell(f"{sequential[index]:.2f}" if sequential else "", notes))
        rows.append(row)
    caption = "Top-1 accuracy in percent in sequential order, and below it in arbitrary orders. Means over seeds."
    if len(shown) < len(present):
        caption += (
            f" These are the {len(shown)} of {len(present)} classes with test images that some method tells worst."
        )
    parts: list[Table | Picture] = [Table(caption, ["class", "images", *columns], rows, folded=len(rows) > 20)]
    for method, found in files.items():
        name, results = next(iter(found.items()))
        caption = f"{method}, seed {results.model.seed}. {figures.confusion.__doc__}"
        header, counts = tables.confusion(results)
        data = Table("images", header, [list(row) for row in counts])
        slug = _slug("confusion", name.removesuffix(".json"))
        parts.append(Picture(slug, caption, partial(figures.confusion, results), data))
    return Section(_heading("Accuracy of each class", setup), [], parts)


def _counted(results: Results) -> list[int]:
    """How many images of each class there are; empty if nothing was counted by class."""
    counts = results.measure(ByClassCounts)
    return counts.images if counts else []


def _class_accuracies(several: Sequence[Results], order: str) -> list[float]:
    """The accuracy of each class in percent, means over models; empty if they didn't run in such an order."""
    counted = [(tables.by_class(results).get(order), _counted(results)) for results in several]
    shares = [
        [100 * right / max(1, orders.samples * count) for right, count in zip(orders.right, images)]
        for orders, images in counted
        if orders
    ]
    return list(map(fmean, zip(*shares)))


def figure_4(setup: SetupResults, study: type[Measure]) -> Section | None:
    """Figures 4a and 4b (study "representations"), or 4c and 4d ("contributions")."""
    several = setup.measured(study)
    if not several:
        return None
    if study is Representations:
        title, letters, draw = "What layers put out", "4a and 4b", figures.representations
        caption = (
            "UMAP of one layer's whole output, all tokens, a point for each image, run by itself in a random order; "
            "its colour is the position that the layer held."
        )
        data = Table("UMAP's plane has no unit", ["method", "position", "x", "y"], [])
        for results in several:
            found = results.measure(Representations)
            points = zip(found.positions, found.plane) if found else ()
            data.rows.extend([results.label, str(position), *map(str, point)] for position, point in points)
    else:
        title, letters, draw = "What layers change", "4c and 4d", figures.contributions
        caption = (
            "how much each layer changes what the model classifies by, when images run in random orders, by how much "
            "later (or, below 0, earlier) than originally the layer ran. Means over the images."
        )
        header = ["method", "measured", "step", "position", "distance", "mean", "std", "images"]
        data = Table("the change that a layer makes at a position", header, [])
        for results in several:
            for (step, position), values in figures.changes_by_step(results).items():
                place = [str(Order([step])), str(position), str(figures.distance(results, step, position))]
                of_all = summarise(values.tolist())
                std = "" if of_all.std is None else f"{of_all.std:.4g}"
                numbers = [f"{of_all.mean:.4g}", std, str(of_all.n)]
                data.rows.append([results.label, figures.change(results), *place, *numbers])
    picture = _picture(study.name, setup, caption, lambda: draw(several[0], others=several[1:]), data)
    return Section(_heading(f"{title} (figures {letters})" if setup.in_paper else title, setup), [], [picture])


def others(setup: SetupResults) -> Section | None:
    """The other systems of this field: every picture of every model that no other section has."""
    parts: list[Table | Picture] = []
    for name, results in setup.files.items():
        for plot in figures.plots(results):
            if plot.name not in ("landscape", "representations", "contributions", "confusion"):
                caption = f"{results.label}, {results.data.images} images ({results.data.split}): {plot.caption}"
                slug, draw = _slug(plot.name, name.removesuffix(".json")), partial(plot.draw, results, "")
                parts.append(Picture(slug, caption, draw, _data(plot, results)))
    return Section(_heading("Other orders", setup), [], parts) if parts else None


def _data(plot: figures.Plot, results: Results) -> Table:
    """The numbers in a picture."""
    rows: Rows = []
    cosine = results.measure(Cosine)
    if plot.measure == "cosine" and cosine:
        rows += [[str(step), *(f"{value:.4f}" for value in row)] for step, row in enumerate(cosine.matrix)]
        return Table("cosine similarity", ["after step", *map(str, range(len(rows)))], rows)
    for score in results.scores:
        if plot.measure or score.protocol in plot.protocols:
            variant = " ".join(f"{key}={value}" for key, value in score.variant.items())
            rows.append([score.protocol, variant, score.order or "", f"{100 * score.top1:.2f}"])
    if plot.measure == "seconds_per_image":
        exits = tables.early_exit(results)[1]
        rows += [["early exit", f"{stop}, {layers} layers", "", top1] for stop, layers, top1 in exits]
    return Table("top-1 in percent", ["protocol", "variant", "order", "top-1 %"], rows)


def everything(setups: Sequence[SetupResults]) -> Section:
    """All scores but those that have a picture of their own, folded."""
    parts: list[Table | Picture] = []
    for setup in setups:
        several = [results for name, results in setup.files.items() if name not in setup.studies]
        pictured = {protocol for results in several for plot in figures.plots(results) for protocol in plot.protocols}
        if several:
            header, rows, caption = comparison(several, pictured)
            title = f"{setup.name}. {caption}" if setup.name else caption
            parts.append(Table(title, header, [list(row) for row in rows], folded=True))
    return Section("Every score", ["Top-1 in percent, by protocol."], parts)


def missing(setups: Sequence[SetupResults], complaints: Sequence[str], files: Sequence[str] | None) -> Section | None:
    """The results that are to be expected, see ``sections``, and files that were left out."""
    if files is None:
        rows = _by_setup(setups, lambda setup: [[cell] for cell in setup.missing()])
    else:
        rows = [[file] for file in files]
    parts: list[Table | Picture] = [Table("These results are missing.", ["results"], rows)] if rows else []
    return Section("Missing", list(complaints), parts) if rows or complaints else None


def provenance(setups: Sequence[SetupResults]) -> Section:
    """Where every number comes from."""
    rows: Rows = []
    for setup in setups:
        for name, results in setup.files.items():
            e = results.environment
            made = f"{e.device}, {e.precision}, torch {e.torch}, timm {e.timm}"
            settings = {key: value for key, value in results.evaluation.to_json().items() if value is not None}
            asked = (f"{k} {' '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in settings.items())
            model = f"{results.label}, seed {results.model.seed}"
            weights = (results.model.sha256 or "")[:12]
            images = f"{results.data.images} ({results.data.split})"
            rows.append([name, model, weights, images, "; ".join(asked), made, str(e.created)])
    header = ["file", "model", "checkpoint sha256", "images", "evaluated", "with", "on"]
    table = Table("The results files behind this report", header, rows, folded=True)
    return Section("How every number was made", [], [table])


def _by_setup(setups: Sequence[SetupResults], rows_of: Callable[[SetupResults], Rows]) -> Rows:
    """The rows of all setups; if there are several, the first row of each says which one it is."""
    found: Rows = []
    for setup in setups:
        rows = rows_of(setup)
        if rows and setup.name:
            rows[0][0] = TableCell(str(rows[0][0]), [setup.name])
        found += rows
    return found


def _heading(title: str, setup: SetupResults) -> str:
    return f"{title}: {setup.name}" if setup.name else title


def _beside(found: Estimate | None, setup: SetupResults, protocol: str, method: str) -> TableCell:
    theirs = paper.TABLE_1.get((setup.backbone, setup.data, protocol, method))
    if found is None or theirs is None:
        return TableCell(tables.percent(found), [f"paper {_text(theirs)}"] if theirs else [])
    difference = found.mean - theirs.mean / 100
    # One seed says nothing of its own spread.
    marked = False
    if found.variance and found.models > 1:
        their_variance = (theirs.std / 100) ** 2 / paper.SEEDS, paper.SEEDS - 1
        marked = abs(difference) > half_width(total([found.variance, their_variance]))
    notes = [f"paper {_text(theirs)}", f"{100 * difference:+.2f}{' ✱' if marked else ''}"]
    return TableCell(tables.percent(found), notes, marked)


def _text(value: paper.Figure) -> str:
    return f"{value.mean:.2f} ({value.std:.2f})"


def _meaning(setups: Sequence[SetupResults], methods: Sequence[str] | None = None) -> str:
    """What ± stands for in a table of these methods, by default all."""
    seeds: dict[str, int] = {}
    for setup in setups:
        for method in setup.methods if methods is None else methods:
            if runs := setup.of(method):
                name = f"{method} ({setup.name})" if setup.name else method
                seeds[name] = len(runs)
    return tables.meaning(seeds) if seeds else ""


def _curves(kind: str, setup: SetupResults, points: list[curves.Point], caption: str) -> Picture:
    data = Table("top-1 in percent", ["sequence", "method", "layers kept", "mean", "std", "seeds"], [])
    for point in points:
        mean, std, seeds = point.accuracy.mean, point.accuracy.std, point.accuracy.n
        numbers = [str(point.kept), f"{mean:.2f}", "" if std is None else f"{std:.2f}", str(seeds)]
        data.rows.append([point.panel, point.method, *numbers])
    return _picture(kind, setup, caption, partial(curves.curves, points, setup.levels), data)


def _picture(kind: str, setup: SetupResults, caption: str, draw: Callable[[], Figure], data: Table) -> Picture:
    name = _slug(kind, setup.data, setup.backbone)
    caption = f"{setup.name}: {caption}" if setup.name else caption[0].upper() + caption[1:]
    return Picture(name, caption, draw, data)


def _slug(*words: str) -> str:
    return re.sub("[^a-z0-9]+", "-", " ".join(words).lower()).strip("-")
