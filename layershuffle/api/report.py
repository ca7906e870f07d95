"""Makes a page of tables and figures from results files alone."""

import logging
from pathlib import Path

from layershuffle.api.simulation_sections import simulations
from layershuffle.errors import UserError
from layershuffle.report import manifest, page
from layershuffle.report.collect import collect, read_files
from layershuffle.report.sections import sections

logger = logging.getLogger(__name__)


def write_report(results: str | Path, folder: str | Path | None = None, *, title: str | None = None) -> Path:
    """Write a page with every table and figure for which there are results.

    What arXiv 2407.04513 found is set beside it where its models and data were run. What ``layershuffle simulate
    --output`` has saved gets a section, too. A file that can't be used is logged, and named in the report.

    Args:
        results: a results file, or a folder, such as that of an experiment; then results files are looked for here and
            in all folders below.
        folder: where to write index.html, report.md, figures and data; by default the folder "report" in ``results``,
            or beside it if it is a file.
        title: the page's title; by default that of the experiment whose folder it is, or the name of ``results``.

    Returns:
        The path of index.html.

    Raises:
        UserError: if there are no results, or the page can't be written.
    """
    source = Path(results)
    if folder is None:
        folder = (source.parent if source.is_file() else source) / "report"
    folder = Path(folder)

    files = read_files(source)
    setups, complaints = collect(files)
    # Without any results of evaluations, simulations alone make a report too.
    simulated, damaged = simulations(files.simulations)
    complaints += damaged
    if not setups and not simulated:
        if complaints:
            raise UserError("; ".join([f"there are no results in {source}", *complaints]))
        raise UserError(
            f"there are no results in {source}: name a results file, which layershuffle evaluate writes, or a folder "
            "that has some"
        )
    for complaint in complaints:
        logger.warning("%s", complaint)

    # Only the folder of an experiment says what it is called, and which results should be there.
    experiment = manifest.read(source)
    missing = None
    if experiment is not None:
        title = title or experiment.title
        missing = experiment.missing(source)
    evaluated = sections(setups, complaints, missing) if setups else []
    page.write(title or source.resolve().name, [*evaluated, *simulated], folder)
    return folder / "index.html"
