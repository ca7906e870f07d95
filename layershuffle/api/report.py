"""Makes a page of tables and figures from results files alone."""

import logging
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from layershuffle.errors import UserError, shown
from layershuffle.files import read_json
from layershuffle.plurals import counted
from layershuffle.report import page
from layershuffle.report.collect import collect, json_files
from layershuffle.report.sections import sections
from layershuffle.serving import comparison
from layershuffle.serving.checks import check_numbers
from layershuffle.serving.scenario import Scenario

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
        results: a results file, or a folder; then results files are looked for here and in all folders below.
        folder: where to write index.html, report.md, figures and data; by default the folder "report" in ``results``,
            or beside it if it is a file.
        title: the page's title; by default the name of ``results``.
        missing: the paths of results files that should be there, which the page names.

    Returns:
        The path of index.html.

    Raises:
        UserError: if there are no results, or the page can't be written.
    """
    results = Path(results)
    if not folder:
        folder = (results.parent if results.is_file() else results) / "report"
    folder = Path(folder)
    simulated, not_simulated = simulations(results)
    # Without any results of evaluations, simulations alone make a report too.
    try:
        setups, complaints = collect(results)
    except UserError as error:
        if not simulated:
            raise
        setups = []
        complaints = [str(error)]
    complaints += not_simulated
    for complaint in complaints:
        logger.warning(complaint)
    evaluated = sections(setups, complaints, missing) if setups else []
    page.write(title or results.resolve().name, [*evaluated, *simulated], folder)
    return folder / "index.html"


def simulations(source: Path) -> tuple[list[page.Section], list[str]]:
    """A section for each file that ``layershuffle simulate`` has saved, and what was left out.

    Args:
        source: such a file, or a folder that has some.
    """
    simulated: list[page.Section] = []
    complaints = []
    for name, path in json_files(source).items():
        try:
            content = read_json(path)
        except UserError:
            continue  # ``collect`` complains of results files that can't be read, and others are no files of ours.
        if not isinstance(content, dict) or not {"scenario", "outcomes"} <= content.keys():
            continue
        try:
            simulated.append(_simulation(content, name.removesuffix(".json")))
        except UserError as error:
            complaints.append(f"{name} is no whole file of layershuffle simulate: {error}; it was left out")
    return simulated, complaints


def _simulation(content: dict[str, Any], name: str) -> page.Section:
    """The section of a file of ``layershuffle simulate``; raises UserError if it can't be one."""
    outcomes = comparison.read_outcomes(content["outcomes"])
    scenario = content["scenario"]
    known = {field.name for field in fields(Scenario)}
    if not isinstance(scenario, dict) or not scenario.keys() <= known:
        raise UserError(f"its scenario can't be {shown(scenario)}")
    check_numbers(scenario)
    header, rows = comparison.table(outcomes)
    seeds = max(map(len, outcomes.values()))
    table = page.Table(
        f"Means over {counted(seeds, 'seed')}; in brackets the lowest and the highest.",
        header,
        [list(row) for row in rows],
    )
    picture = page.Picture(
        page.slug(name),
        "bands reach from the lowest seed to the highest.",
        partial(comparison.figure, outcomes),
        table,
    )
    settings = [f"{key}: {value}" for key, value in scenario.items() if key != "nodes"]
    return page.Section(f"Simulated nodes: {name}", [f"{', '.join(settings)}."], [picture, table])
