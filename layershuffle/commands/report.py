"""Makes the report of an experiment from its results files alone."""

from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

from layershuffle.commands.parser import Parser
from layershuffle.reproduction import page, plan
from layershuffle.reproduction.collect import collect
from layershuffle.reproduction.sections import sections


def report(folder: Path, output: Path | None = None, title: str | None = None) -> None:
    """Write a page of what was found: the conclusion, then every table and figure for which there are results.

    What arXiv 2407.04513 found is set beside it where its models and data were run.

    Args:
        folder: results files are looked for here and in all folders below.
        output: the folder for index.html, report.md, figures and data; by default FOLDER/report.
        title: of the page; by default that of the experiment, or else the folder's name.
    """
    output = output or folder / "report"
    setups, complaints = collect(folder)
    for complaint in complaints:
        Console(stderr=True).print(f"warning: {complaint}", highlight=False, soft_wrap=True)
    planned, missing = plan.read(folder)
    page.write(title or planned, sections(setups, complaints, missing), output)
    print(f"report: {output}/index.html and report.md")


def report_command(args: list[str] | None = None) -> None:
    """Make the report that ``args`` ask for, by default those of the process."""
    does = "Make a page of what an experiment found, from results files alone."
    auto_cli(report, args=args, parser_class=Parser, prog="layershuffle report", description=does)
