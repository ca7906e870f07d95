"""Models whose layers come from several others, beside those."""

from collections.abc import Sequence

from layershuffle.report.page import Section, Table
from layershuffle.report.sections.wording import READINGS, Rows, by_setup, quality_of, with_note
from layershuffle.report.setups import SetupResults
from layershuffle.results import estimate, tables

SUFFIX = "-merged"
"""What the names of merged models' methods end in."""


def merged(setups: Sequence[SetupResults]) -> Section | None:
    """The accuracy of merged models and of the models that their layers come from."""
    rows = by_setup(setups, _rows)
    if not rows:
        return None
    text = "Each layer comes at random from one of the models that the same method trained with different seeds."
    if any(setup.in_paper for setup in setups):
        text += " The paper's first version (arXiv 2407.04513v1) found no loss of accuracy."
    caption = with_note(f"{quality_of(setups)} in percent.", rows)
    table = Table(caption, ["", "sources", "merged"], rows)
    return Section("Merged models", [text], [table])


def _rows(setup: SetupResults) -> Rows:
    """A row for each merged method and reading: its accuracy beside that of the models that its layers come from."""
    rows: Rows = []
    for method in setup.methods:
        if not method.endswith(SUFFIX):
            continue
        sources = method.removesuffix(SUFFIX)
        for reading, (protocol, variant) in READINGS.items():
            of_sources = estimate(setup.scores_by_seed(sources, protocol, **variant))
            of_merged = estimate(setup.scores_by_seed(method, protocol, **variant))
            rows.append([f"{method}, {reading}", tables.percent(of_sources), tables.percent(of_merged)])
    return rows
