"""The other systems of this field: pictures of single models that no other section has, and every score."""

from collections.abc import Sequence
from functools import partial

from layershuffle.plurals import counted
from layershuffle.report.comparison import comparison
from layershuffle.report.page import Picture, Section, Table, slug
from layershuffle.report.sections.wording import heading, quality_of, texts, with_note
from layershuffle.report.setups import SetupResults
from layershuffle.results import Results, scores_of
from layershuffle.results.figures import Plot, plots


def others(setup: SetupResults) -> Section | None:
    """Every picture of every model that no other section has."""
    parts: list[Table | Picture] = []
    for name, results in setup.files.items():
        about = f"{results.label}, {counted(results.data.images, 'image')} ({results.data.split})"
        for plot in plots(results):
            # Another section shows the same for all models together.
            if plot.section:
                continue
            draw = partial(plot.figure, results, "")
            file_name = slug(plot.name, name.removesuffix(".json"))
            parts.append(Picture(file_name, f"{about}: {plot.caption}", draw, _data(plot, results)))
    return Section(heading("Other orders", setup), [], parts) if parts else None


def _data(plot: Plot, results: Results) -> Table:
    """The numbers in a picture."""
    if plot.measure:
        caption, table = plot.measure.data(results)
    else:
        caption = f"{results.quality} in percent"
        table = scores_of(results, plot.protocols)
    return Table(caption, table.header, texts(table))


def every_score(setups: Sequence[SetupResults]) -> Section:
    """All scores but those that have a picture of their own, folded."""
    parts: list[Table | Picture] = []
    for setup in setups:
        several = [results for name, results in setup.files.items() if name not in setup.studies]
        if not several:
            continue
        # The scores of a protocol with a picture stand below it.
        pictured: set[str] = set()
        for results in several:
            for plot in plots(results):
                pictured.update(plot.protocols)
        table, _ = comparison(several, pictured)
        rows = texts(table)
        caption = f"{quality_of([setup])} in percent, by protocol."
        if setup.name:
            caption = f"{setup.name}. {caption}"
        parts.append(Table(with_note(caption, rows), table.header, rows, folded=True))
    return Section("Every score", [], parts)
