"""Makes the report of an experiment from its results files alone."""

from pathlib import Path

from layershuffle.commands.parser import Parser
from layershuffle.experiments import manifest
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

    # Matplotlib takes a second to import.
    from layershuffle.api.report import report

    # Only folders of layershuffle experiment say what they are called, and what should be there.
    title = config.title
    missing = None
    experiment = manifest.read(config.results_path)
    if experiment is not None:
        title = title or experiment.title
        missing = experiment.missing(config.results_path)
    page = report(config.results_path, config.folder, title, missing)
    print(f"report: {page} and {page.with_name('report.md')}")
