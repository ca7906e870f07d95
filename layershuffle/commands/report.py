"""Makes the report of an experiment from its results files alone."""

from pathlib import Path

import layershuffle
from layershuffle.commands.parser import Parser
from layershuffle.options import add_options


def report_command(args: list[str] | None = None) -> None:
    """Make the report as ``args`` say, by default those of the process; prints the page's path."""
    parser = Parser(
        prog="layershuffle report",
        description="Make a page of tables and figures from results files, also from those of layershuffle simulate. "
        "By default it is written to RESULTS/report, of a file to the folder report beside it.",
    )
    parser.add_argument(
        "results_path",
        type=Path,
        metavar="RESULTS",
        help="Results file, or folder to search for results files, with all folders below it.",
    )
    add_options(parser, "folder")
    parser.add_argument(
        "--title", type=str | None, help="Title of the page (default: that of the experiment, or the folder's name)."
    )
    config = parser.parse_args(args)

    page = layershuffle.write_report(config.results_path, config.folder, title=config.title)
    print(f"report: {page} and {page.with_name('report.md')}")
