"""Makes the report of an experiment from its results files alone."""

from functools import partial
from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

from layershuffle.commands.parser import Parser
from layershuffle.errors import UserError
from layershuffle.experiments import plan
from layershuffle.files import read_json
from layershuffle.report import page
from layershuffle.report.collect import collect
from layershuffle.report.sections import sections
from layershuffle.serving import comparison


def report(folder: Path, output: Path | None = None, title: str | None = None) -> None:
    """Write a page of what was found: the conclusion, then every table and figure for which there are results.

    What arXiv 2407.04513 found is set beside it where its models and data were run. What ``layershuffle simulate
    --output`` has saved there gets a section, too.

    Args:
        folder: results files are looked for here and in all folders below.
        output: the folder for index.html, report.md, figures and data; by default FOLDER/report.
        title: of the page; by default that of the experiment, or else the folder's name.
    """
    output = output or folder / "report"
    simulated = simulations(folder)
    try:
        setups, complaints = collect(folder)
    except UserError as error:
        if not simulated:
            raise
        setups, complaints = [], [str(error)]
    for complaint in complaints:
        Console(stderr=True).print(f"warning: {complaint}", highlight=False, soft_wrap=True)
    planned, missing = plan.read(folder)
    found = sections(setups, complaints, missing) if setups else []
    page.write(title or planned, [*found, *simulated], output)
    print(f"report: {output}/index.html and report.md")


def simulations(folder: Path) -> list[page.Section]:
    """A section for each file below ``folder`` that ``layershuffle simulate`` has saved."""
    made = []
    for path in sorted(folder.rglob("*.json")):
        try:
            record = read_json(path)
            found = {(at["nodes"], at["policy"]): at["seeds"] for at in record["outcomes"]}
            scenario, seeds = record["scenario"], len(record["seeds"])
            header, rows = comparison.table(found)
        except (UserError, OSError, ValueError, KeyError, TypeError):
            continue  # It is something else.
        name = path.relative_to(folder).with_suffix("").as_posix()
        caption = f"Means over {seeds} seeds; in brackets the lowest and the highest."
        table = page.Table(caption, header, [list(row) for row in rows])
        caption = "bands reach from the lowest seed to the highest."
        picture = page.Picture(name.replace("/", "-"), caption, partial(comparison.figure, found), table)
        text = ", ".join(f"{key}: {value}" for key, value in scenario.items() if key != "nodes")
        made.append(page.Section(f"Simulated nodes: {name}", [f"{text}."], [picture, table]))
    return made


def report_command(args: list[str] | None = None) -> None:
    """Make the report that ``args`` ask for, by default those of the process."""
    does = "Make a page of what an experiment found, from results files alone."
    auto_cli(report, args=args, parser_class=Parser, prog="layershuffle report", description=does)
