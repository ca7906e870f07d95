"""Makes each check in a process of its own, so that one that hangs or crashes ends no other, and writes the page."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from layershuffle.files import read_json, write_whole
from layershuffle.gpu_check.checks import CHECKS, Check, LeftOut, Setting
from layershuffle.gpu_check.machine import reasons
from layershuffle.hardware import device_name
from layershuffle.results import tables

STATES = ("passed", "missed", "failed", "left out")
"""A check that has "missed" gave right results, but not as fast as it should."""
Result = dict[str, Any]
"""What a check has found: its "state", its "figure" or the reason, the "seconds" it took and "details"."""
LATER: Result = {"state": "left out", "figure": "not reached: --resume makes it", "seconds": 0.0}


def make(check: Check, setting: Setting, path: Path) -> None:
    """Make a check in this process, and write what it found to ``path``."""
    device, details = "unknown", None
    try:
        device = device_name(setting.device)
        if check.gpu and not setting.cuda:
            raise LeftOut("it says nothing about a CPU")
        found = check.run(setting)
        state, figure, details = "missed" if found.missed else "passed", found.figure, found.details
        figure += f"; missed: {found.missed}" if found.missed else ""
    except LeftOut as reason:
        state, figure = "left out", str(reason)
    except SystemExit as stop:  # of a command, which has said the rest
        state, figure = "failed", str(stop.code)
    except Exception as error:
        traceback.print_exc()
        kind = "" if type(error) is AssertionError else f"{type(error).__name__}: "
        state, figure = "failed", kind + (str(error).strip().split("\n")[0] or "see the log")
    result = {"state": state, "figure": figure, "details": details, "device": device}
    write_whole(path, json.dumps(result))


def run(
    chosen: Mapping[str, Result | float], folder: Path, about: Mapping[str, Any], minutes: float, command: Sequence[str]
) -> dict[str, Result]:
    """Make checks one after the other, and return what they found. The page is written after each of them.

    Args:
        chosen: the name of every check, with its result if there is one already, or else the seconds it may take.
        folder: for the page, the JSON and the logs.
        about: what ``machine.describe`` says.
        minutes: how long all may take. A check that needs longer than what is left is left out.
        command: a program and its arguments; with the name of a check as the last argument it makes the check, and
            writes its result to ``folder/NAME.json``.
    """
    limits = {name: limit for name, limit in chosen.items() if not isinstance(limit, dict)}
    results = {name: found if isinstance(found, dict) else LATER for name, found in chosen.items()}
    console, end = Console(markup=False, highlight=False), time.monotonic() + 60 * minutes
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    kernels = tempfile.TemporaryDirectory(prefix="layershuffle-", ignore_cleanup_errors=True)
    sigterm = signal.signal(signal.SIGTERM, signal.default_int_handler)  # A scheduler's SIGTERM acts as Ctrl-C does.
    columns = [TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), TimeElapsedColumn()]
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress, kernels:
            # The checks share what torch compiles.
            environment = {"TORCHINDUCTOR_CACHE_DIR": kernels.name} | os.environ
            task = progress.add_task("checks", total=len(limits))
            for name, limit in limits.items():
                progress.update(task, description=name)
                left = end - time.monotonic()
                if left >= limit / 2:  # which is what it should take
                    found = _made(name, folder, min(left, limit), command, environment)
                    if found["state"] == "missed":
                        found["figure"] += f"; likely reason: {reasons(about)}"
                    if found["seconds"] < left:  # otherwise it was stopped before its own limit
                        results[name] = found
                write(results, folder, about)
                progress.advance(task)
                console.print(f"{name}: {results[name]['state']}, {results[name]['figure']}", soft_wrap=True)
    finally:
        write(results, folder, about)
        signal.signal(signal.SIGTERM, sigterm)
    return results


def _made(name: str, folder: Path, limit: float, command: Sequence[str], environment: Mapping[str, str]) -> Result:
    """What a check found in a process of its own, which is killed after ``limit`` seconds."""
    path, log, begun = folder / f"{name}.json", folder / "logs" / f"{name}.txt", time.monotonic()
    path.unlink(missing_ok=True)
    scratch = tempfile.mkdtemp(prefix="layershuffle-")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, name],
            env={**environment, "TMPDIR": scratch},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        code: int | None = process.wait(limit)
    except subprocess.TimeoutExpired:
        code = None
    finally:
        _end(process)
        shutil.rmtree(scratch, ignore_errors=True)
    result: Result = {"state": "failed", "details": None}
    if code is None:
        result["figure"] = f"it took longer than {limit:.0f} s, see {log}"
    elif path.is_file():
        result = read_json(path)
        path.unlink()
    else:
        how = signal.Signals(-code).name if code < 0 else f"the code {code}"
        result["figure"] = f"its process ended with {how}, see {log}"
    return result | {"seconds": round(time.monotonic() - begun, 1)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it has started, first gently, because torchrun ends its own processes then."""
    with suppress(ProcessLookupError):
        for number in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, number)
            for _ in range(100):  # until there is no such group, or 10 s have passed
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.1)


def write(results: Mapping[str, Result], folder: Path, about: Mapping[str, Any]) -> None:
    """Write ``gpu_check.json``, which has everything, and ``gpu_check.md``, which has the table."""
    device = next((result["device"] for result in results.values() if "device" in result), "unknown")
    content = {"created": datetime.now(UTC).isoformat(timespec="seconds"), "device": device, "machine": dict(about)}
    results = {name: results[name] for name in CHECKS if name in results}
    write_whole(folder / "gpu_check.json", json.dumps(content | {"checks": results}, indent=1) + "\n")
    header, rows = _table(results)
    facts = [f"- {name}: {_shown(value)}" for name, value in about.items()]
    page = [f"# layershuffle check-gpu on {device}", "", f"{summary(results)}, on {content['created']}.", ""]
    made = tables.markdown(header, [[cell.replace("|", "\\|") for cell in row] for row in rows])
    page += [made.replace("---:", "---"), *facts]
    write_whole(folder / "gpu_check.md", "\n".join(page) + "\n")


def table(results: Mapping[str, Result]) -> Table:
    """The table for the terminal."""
    header, rows = _table(results)
    shown = Table(*header, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for row in rows:
        shown.add_row(*map(escape, row))
    return shown


def _table(results: Mapping[str, Result]) -> tuple[list[str], tables.Rows]:
    header = ["part", "check", "result", "figure", "what it means if it passes"]
    made = [(CHECKS[name], result) for name, result in results.items()]
    return header, [[check.part, check.name, found["state"], found["figure"], check.meaning] for check, found in made]


def summary(results: Mapping[str, Result]) -> str:
    """How many checks passed and so on."""
    counts = Counter(result["state"] for result in results.values())
    return f"{len(results)} checks: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_shown, value)) or "none"
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)
