"""Measures of which the report shows all models side by side: figure 4 of arXiv 2407.04513."""

from functools import partial

from layershuffle.report.page import Section, Table
from layershuffle.report.sections.wording import heading, picture, texts
from layershuffle.report.setups import SetupResults
from layershuffle.results import MEASURES, Measure, ReportSection, Results


def side_by_side(setup: SetupResults) -> list[Section]:
    """A section for each such measure that some studies of this setup have, in the paper's sequence."""
    about: list[tuple[str, Section]] = []
    for kind in MEASURES.values():
        several = setup.measured(kind)
        if several and kind.section and kind.section.side_by_side:
            about.append((kind.section.paper_figures, _section(setup, kind, kind.section, several)))
    about.sort(key=lambda pair: pair[0])  # by the paper's figures, those that the paper doesn't have first
    return [section for _, section in about]


def _section(setup: SetupResults, kind: type[Measure], about: ReportSection, several: list[Results]) -> Section:
    """The section of one kind of measure, with a picture of all models."""
    # Its figures are only those of the paper where it is about the paper's model and data.
    title = about.title
    if setup.in_paper and about.paper_figures:
        title += f" (figures {about.paper_figures})"
    data_caption, table = kind.compared_data(several)
    data = Table(data_caption, table.header, texts(table))
    draw = partial(kind.compared, several)
    all_models = picture(kind.picture, setup, about.caption, draw, data)
    return Section(heading(title, setup), [], [all_models])
