"""The page, the JSON and the table of what the checks have found."""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from layershuffle.files import read_json, write_whole
from layershuffle.gpu_check.checks import CHECKS
from layershuffle.gpu_check.result import STATES, CheckResult
from layershuffle.plurals import counted
from layershuffle.results import tables

JSON = "gpu_check.json"
PAGE = "gpu_check.md"
HEADER = ["part", "check", "result", "figure", "what it means if it passes"]


def write(results: Mapping[str, CheckResult], folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``gpu_check.json``, which has everything, and ``gpu_check.md``, which has the table.

    Args:
        results: by the names of the checks.
        folder: for the files.
        about: what ``machine.describe`` returned.
    """
    # Results come in the sequence of CHECKS, not in the one in which they were made.
    results = {name: results[name] for name in CHECKS if name in results}
    # A check that hung or crashed has no device in its result, so the first one that is known is taken.
    device = next((result.device for result in results.values() if result.device), "unknown")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    content = {
        "created": created,
        "device": device,
        "machine": dict(about),
        "checks": {name: result.to_json() for name, result in results.items()},
    }
    write_whole(folder / JSON, json.dumps(content, indent=1) + "\n")

    lines = [
        f"# layershuffle check-gpu on {device}",
        "",
        f"{summary(results)}, on {created}.",
        "",
        # ``tables`` aligns all columns but the first to the right, as numbers are. These are texts.
        tables.markdown(HEADER, _rows(results)).replace("---:", "---"),
        *(f"- {name}: {_as_text(value)}" for name, value in about.items()),
    ]
    write_whole(folder / PAGE, "\n".join(lines) + "\n")


def read(folder: Path) -> tuple[dict[str, Any], dict[str, CheckResult]]:
    """What an earlier ``gpu_check.json`` says of the machine, and its results."""
    content = read_json(folder / JSON)
    results = {name: CheckResult.from_json(result) for name, result in content["checks"].items()}
    return content["machine"], results


def table(results: Mapping[str, CheckResult]) -> Table:
    """The table for the terminal."""
    terminal_table = Table(*HEADER, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in _rows(results):
        terminal_table.add_row(*(escape(cell) for cell in row))
    return terminal_table


def summary(results: Mapping[str, CheckResult]) -> str:
    """How many checks there are, and how many of them have each state."""
    counts = Counter(result.state for result in results.values())
    texts = [f"{counts[state]} {state}" for state in STATES if counts[state]]
    return f"{counted(len(results), 'check')}: {', '.join(texts)}"


def _rows(results: Mapping[str, CheckResult]) -> list[list[str]]:
    """The rows under HEADER."""
    rows = []
    for name, result in results.items():
        check = CHECKS[name]
        rows.append([check.part, name, result.state, result.figure, check.meaning])
    return rows


def _as_text(value: Any) -> str:
    """A value of ``machine.describe`` as the page shows it."""
    if isinstance(value, list):
        return "; ".join(_as_text(item) for item in value) or "none"
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)
