"""What the report says, from results files alone: section 4 of arXiv 2407.04513 table by table, and more."""

from collections.abc import Sequence

from layershuffle.report.page import Section
from layershuffle.report.sections.classes import classes
from layershuffle.report.sections.corruptions import corruptions
from layershuffle.report.sections.depth import every_subset, pruning, several_at_a_time
from layershuffle.report.sections.files import missing, provenance
from layershuffle.report.sections.measures import side_by_side
from layershuffle.report.sections.merged import merged
from layershuffle.report.sections.orders import position_accuracy, table_1
from layershuffle.report.sections.others import every_score, others
from layershuffle.report.sections.summary import summary
from layershuffle.report.setups import SetupResults


def sections(
    setups: Sequence[SetupResults], complaints: Sequence[str], missing_files: Sequence[str] | None = None
) -> list[Section]:
    """All sections for which there are results, then what is missing and how every number was made.

    Args:
        setups: the results, see ``collect``.
        complaints: a sentence for each file that was left out.
        missing_files: the results files that the experiment lacks. If it is None, nobody knows what was asked for, and
            every seed of every method is expected.
    """
    # The paper's experiments come first, in its sequence. A section without results is None.
    written: list[Section | None] = [summary(setups), table_1(setups), position_accuracy(setups)]
    written += [pruning(setup) for setup in setups]
    written += [every_subset(setup) for setup in setups]
    for setup in setups:
        written += several_at_a_time(setup)
    written.append(merged(setups))
    written += [classes(setup) for setup in setups]
    written += [corruptions(setup) for setup in setups]
    for setup in setups:
        written += side_by_side(setup)
    written += [others(setup) for setup in setups]
    written += [every_score(setups), missing(setups, complaints, missing_files), provenance(setups)]
    return [section for section in written if section is not None]
