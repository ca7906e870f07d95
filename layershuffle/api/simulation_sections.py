"""The report's sections of what ``layershuffle simulate`` has saved: routing policies compared on simulated nodes.

They stand here, because the rooms of the report and of serving know nothing of each other.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from layershuffle.errors import UserError, shown
from layershuffle.plurals import counted
from layershuffle.report.page import Picture, Section, Table, slug
from layershuffle.serving import comparison
from layershuffle.serving.checks import check_numbers
from layershuffle.serving.scenario import Scenario


def simulations(contents: Mapping[str, Any]) -> tuple[list[Section], list[str]]:
    """A section for each file that ``layershuffle simulate`` has saved.

    Args:
        contents: what the files hold, by their names.

    Returns:
        The sections, and a sentence for each file that is left out because it is damaged.
    """
    written = []
    complaints = []
    for name, content in contents.items():
        try:
            written.append(_simulation(content, name.removesuffix(".json")))
        except UserError as error:
            complaints.append(f"{name} is no whole file of layershuffle simulate: {error}; it was left out")
    return written, complaints


def _simulation(content: dict[str, Any], name: str) -> Section:
    """The section of a file of ``layershuffle simulate``; raises UserError if it can't be one."""
    outcomes = comparison.read_outcomes(content["outcomes"])
    # The scenario is shown as text, and a file may come from anyone: only numbers under known names are repeated.
    scenario = content["scenario"]
    known = {field.name for field in fields(Scenario)}
    if not isinstance(scenario, dict) or not scenario.keys() <= known:
        raise UserError(f"its scenario can't be {shown(scenario)}")
    check_numbers(scenario)

    header, rows = comparison.table(outcomes)
    seeds = max(map(len, outcomes.values()))
    table = Table(
        f"Means over {counted(seeds, 'seed')}; in brackets the lowest and the highest.",
        header,
        [list(row) for row in rows],
    )
    picture = Picture(
        slug(name),
        "bands reach from the lowest seed to the highest.",
        partial(comparison.figure, outcomes),
        table,
    )
    # The number of nodes in a scenario isn't used: the rows of the table say how many there were.
    settings = [f"{key}: {value}" for key, value in scenario.items() if key != "nodes"]
    return Section(f"Simulated nodes: {name}", [f"{', '.join(settings)}."], [picture, table])
