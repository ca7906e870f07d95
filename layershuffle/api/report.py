"""Makes a page of tables and figures from results files alone."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from layershuffle.errors import UserError
from layershuffle.files import read_json
from layershuffle.report import page
from layershuffle.report.collect import collect
from layershuffle.report.sections import sections
from layershuffle.serving import comparison

logger = logging.getLogger(__name__)


def report(
    results: str | Path,
    folder: str | Path | None = None,
    title: str | None = None,
    missing: Sequence[str] | None = None,
) -> Path:
    """Write a page with every table and figure for which there are results.

    What arXiv 2407.04513 found is set beside it where its models and data were run. What ``layershuffle simulate
    --output`` has saved gets a section, too.

    Args:
        results: a folder; results files are looked for here and in all folders below.
        folder: where to write index.html, report.md, figures and data; by default the folder "report" in ``results``.
        title: the page's title; by default the name of the folder ``results``.
        missing: the paths of results files that should be there, which the page names.

    Returns:
        The path of index.html.

    Raises:
        UserError: if there are no results, or the page can't be written.
    """
    results = Path(results)
    folder = Path(folder) if folder else results / "report"
    simulated = simulations(results)
    # Without any results of evaluations, simulations alone make a report too.
    try:
        setups, complaints = collect(results)
    except UserError as error:
        if not simulated:
            raise
        setups = []
        complaints = [str(error)]
    for complaint in complaints:
        logger.warning(complaint)
    evaluated = sections(setups, complaints, missing) if setups else []
    page.write(title or results.resolve().name, [*evaluated, *simulated], folder)
    return folder / "index.html"


def simulations(folder: Path) -> list[page.Section]:
    """A section for each file below ``folder`` that ``layershuffle simulate`` has saved."""
    simulated = []
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder).with_suffix("").as_posix()
        try:
            simulated.append(_simulation(read_json(path), name))
        except (UserError, OSError, ValueError, KeyError, TypeError):
            # Other commands save files of the same kind, which have other content.
            continue
    return simulated


def _simulation(content: dict[str, Any], name: str) -> page.Section:
    """The section of a file of ``layershuffle simulate``; raises KeyError or TypeError if it is something else."""
    outcomes: comparison.Outcomes = {}
    for outcome in content["outcomes"]:
        outcomes[outcome["nodes"], outcome["policy"]] = outcome["seeds"]
    header, rows = comparison.table(outcomes)
    table = page.Table(
        f"Means over {len(content['seeds'])} seeds; in brackets the lowest and the highest.",
        header,
        [list(row) for row in rows],
    )
    picture = page.Picture(
        page.slug(name),
        "bands reach from the lowest seed to the highest.",
        partial(comparison.figure, outcomes),
        table,
    )
    settings = [f"{key}: {value}" for key, value in content["scenario"].items() if key != "nodes"]
    return page.Section(f"Simulated nodes: {name}", [f"{', '.join(settings)}."], [picture, table])
