"""The results files behind a report: which are missing, and how each was made."""

from collections.abc import Sequence

from layershuffle.report.page import Picture, Section, Table
from layershuffle.report.sections.wording import Rows, by_setup
from layershuffle.report.setups import SetupResults
from layershuffle.results import EvaluationInfo


def missing(setups: Sequence[SetupResults], complaints: Sequence[str], files: Sequence[str] | None) -> Section | None:
    """The results that are to be expected, and the files that were left out.

    Args:
        setups: the results that there are.
        complaints: a sentence for each file that was left out.
        files: the results files that are missing; None if nobody knows, and every seed of every method is expected.
    """
    # Only an experiment knows which files were asked for.
    rows: Rows = by_setup(setups, _missing_runs) if files is None else [[file] for file in files]
    parts: list[Table | Picture] = []
    if rows:
        parts.append(Table("These results are missing.", ["results"], rows))
    return Section("Missing", list(complaints), parts) if rows or complaints else None


def _missing_runs(setup: SetupResults) -> Rows:
    """A row for each run that the setup lacks."""
    return [[run] for run in setup.missing_runs()]


def provenance(setups: Sequence[SetupResults]) -> Section:
    """Where every number comes from."""
    rows: Rows = []
    for setup in setups:
        for name, results in setup.files.items():
            environment = results.environment
            # Enough to tell whether two numbers were made alike; the file itself says more.
            machine = f"{environment.device}, {environment.precision}"
            versions = f"torch {environment.torch}, timm {environment.timm}"
            rows.append(
                [
                    name,
                    f"{results.label}, seed {results.model.seed}",
                    (results.model.sha256 or "")[:12],
                    f"{results.data.images} ({results.data.split})",
                    _settings(results.evaluation),
                    f"{machine}, {versions}",
                    str(environment.created),
                ]
            )
    header = ["file", "model", "checkpoint sha256", "images", "evaluated", "with", "on"]
    table = Table("The results files behind this report", header, rows, folded=True)
    return Section("How every number was made", [], [table])


def _settings(evaluation: EvaluationInfo) -> str:
    """Every setting that has a value, by name."""
    settings = []
    for name, value in evaluation.to_json().items():
        if isinstance(value, list):
            settings.append(f"{name} {' '.join(map(str, value))}")
        elif value is not None:
            settings.append(f"{name} {value}")
    return "; ".join(settings)
