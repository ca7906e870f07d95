"""Makes the report of an experiment from its results files alone."""

from pathlib import Path

from jsonargparse import auto_cli
from rich.console import Console

from layershuffle.commands.parser import Parser
from layershuffle.reproduction import page
from layershuffle.reproduction.collect import collect
from layershuffle.reproduction.sections import sections


def report(folder: Path, output: Path | None = None, title: str = "LayerShuffle, reproduced") -> None:
    """Write every table and figure of arXiv 2407.04513, section 4, for which there are results, beside the paper's.

    Args:
        folder: results files are looked for here and in all folders below.
        output: the folder for index.html, report.md, figures and data; by default FOLDER/report.
        title: of the page.
    """
    output = output or folder / "report"
    setups, complaints = collect(folder)
    for complaint in complaints:
        Console(stderr=True).print(f"warning: {complaint}", highlight=False, soft_wrap=True)
    page.write(title, sections(setups, complaints), output)
    print(f"report: {output}/index.html and report.md")


def report_command(args: list[str] | None = None) -> None:
    """Make the report that ``args`` ask for, by default those of the process."""
    does = "Make a page of every table and figure of the paper, beside the paper's own, from results files alone."
    auto_cli(report, args=args, parser_class=Parser, prog="layershuffle report", description=does)
