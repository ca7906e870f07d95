"""Sequential and arbitrary order: table 1 of arXiv 2407.04513, and how often the layers predict their position."""

from collections.abc import Sequence

from layershuffle.report import paper
from layershuffle.report.page import Section, Table, TableCell
from layershuffle.report.sections.wording import READINGS, Rows, by_setup, quality_of, with_note
from layershuffle.report.setups import SetupResults, in_papers_sequence
from layershuffle.results import Estimate, estimate, half_width, tables, total

READ_IN_TWO_WAYS = (
    "Each number is the mean over seeds. Arbitrary order is read in two ways: a new random order for every batch, and "
    "the mean of some random orders that each ran over all test images."
)
MARKED = (
    "✱ marks a difference from the paper's mean that Welch's t test finds at the 5% level. The paper's variance is "
    "that over its five seeds, whose standard deviation is in brackets. Ours includes the test images, as if the paper "
    "had used others, so that fewer differences are marked. A number of one seed is not tested. The paper draws a new "
    "order for every batch."
)


def table_1(setups: Sequence[SetupResults]) -> Section | None:
    """Sequential and arbitrary order, method by method, beside the paper's where it has such models and data."""
    # Every setup has the same columns, those of the methods of all setups.
    all_methods: list[str] = []
    for setup in setups:
        all_methods += setup.main_methods
    methods = in_papers_sequence(all_methods)

    def of_setup(setup: SetupResults) -> Rows:
        rows: Rows = []
        for reading, (protocol, variant) in READINGS.items():
            cells = []
            for method in methods:
                accuracy = estimate(setup.scores_by_seed(method, protocol, **variant))
                cells.append(_beside_paper(accuracy, setup, protocol, method))
            # A reading that nobody evaluated has no row.
            if any(cell.text != "missing" for cell in cells):
                rows.append([reading, *cells])
        return rows

    rows = by_setup(setups, of_setup)
    if not rows:
        return None
    caption = with_note(f"{quality_of(setups, in_words=True)} in percent. {READ_IN_TWO_WAYS}", rows)
    ours = Table(caption, ["", *methods], rows)
    if not any(setup.in_paper for setup in setups):
        return Section("Sequential and arbitrary order", [], [ours])
    return Section("Table 1: sequential and arbitrary order", [MARKED], [ours, _papers_table(setups)])


def _papers_table(setups: Sequence[SetupResults]) -> Table:
    """The paper's numbers for the backbones and data sets that these setups have."""
    table = Table("The paper's own, mean (standard deviation) over five seeds.", ["", *paper.METHODS], [])
    in_paper = [(setup.backbone, setup.data) for setup in setups if setup.in_paper]
    shown: dict[tuple[str, str, str], None] = {}  # a set that keeps the sequence
    for backbone, data, order, _ in paper.TABLE_1:
        if (backbone, data) in in_paper:
            shown[backbone, data, order] = None
    for backbone, data, order in shown:
        numbers = [_text(paper.TABLE_1[backbone, data, order, method]) for method in paper.METHODS]
        table.rows.append([TableCell(order, [f"{backbone}, {data}"]), *numbers])
    return table


def _beside_paper(accuracy: Estimate | None, setup: SetupResults, protocol: str, method: str) -> TableCell:
    """An accuracy, below it the paper's if it has one, and the difference, marked if chance doesn't explain it."""
    text = tables.percent(accuracy)
    # The paper has no number for most methods, and for none on other data.
    theirs = paper.TABLE_1.get((setup.backbone, setup.data, protocol, method))
    if theirs is None:
        return TableCell(text)
    papers = f"paper {_text(theirs)}"
    if accuracy is None:
        return TableCell(text, [papers])
    difference = accuracy.mean - theirs.mean / 100
    marked = False
    # Welch's test of the two means. One seed has no variance between seeds, so it is not tested.
    if accuracy.variance and accuracy.models > 1:
        # The variance of the paper's mean, and its degrees of freedom.
        their_variance = (theirs.std / 100) ** 2 / paper.SEEDS, paper.SEEDS - 1
        by_chance = half_width(total([accuracy.variance, their_variance]))
        marked = abs(difference) > by_chance
    note = f"{100 * difference:+.2f}"
    if marked:
        note += " ✱"
    return TableCell(text, [papers, note], marked)


def _text(value: paper.Accuracy) -> str:
    """Mean and standard deviation as the paper writes them: ``75.22 (0.28)``."""
    return f"{value.mean:.2f} ({value.std:.2f})"


def position_accuracy(setups: Sequence[SetupResults]) -> Section | None:
    """How often the layers predict their position."""

    def of_setup(setup: SetupResults) -> Rows:
        rows: Rows = []
        for method in setup.methods:
            for reading, (protocol, variant) in READINGS.items():
                scores = setup.scores_by_seed(method, protocol, **variant)
                share = estimate(scores, lambda score: score.position_accuracy)
                if share:
                    rows.append([f"{method}, {reading}", tables.percent(share)])
        return rows

    rows = by_setup(setups, of_setup)
    if not rows:
        return None
    caption = "Percent of the positions that the layers predict rightly."
    if any(setup.in_paper for setup in setups):
        caption += f" The paper reports {paper.POSITION_ACCURACY} (section 4.1)."
    return Section("Position prediction", [], [Table(with_note(caption, rows), ["", "right, %"], rows)])
