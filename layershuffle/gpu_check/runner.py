"""Makes each check in a process of its own, so that one that hangs or crashes ends no other."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from layershuffle.gpu_check import page
from layershuffle.gpu_check.machine import reasons_for_slowness
from layershuffle.gpu_check.result import LATER, CheckResult, read
from layershuffle.processes import Child, progress_bars, sigterm_as_interrupt

logger = logging.getLogger(__name__)


def run_all(
    limits: Mapping[str, float],
    results: Mapping[str, CheckResult],
    folder: Path,
    about: Mapping[str, Any],
    minutes: float,
    command: Sequence[str],
) -> dict[str, CheckResult]:
    """Make checks one after the other, and return all results. The page is written after each of them.

    Args:
        limits: by the names of the checks to make: the seconds that each may take.
        results: the results that there are already, by the names of their checks.
        folder: for the page, the JSON and the logs.
        about: what ``machine.describe`` returned.
        minutes: how long all may take. A check that needs longer than what is left is left out.
        command: a program and its arguments; with the name of a check as the last argument it makes the check, and
            writes its result to ``folder/NAME.json``.
    """
    all_results = {**dict.fromkeys(limits, LATER), **results}
    end = time.monotonic() + 60 * minutes
    # The checks share the kernels that torch compiles, in a cache that is empty at first: kernels from an earlier run
    # could hide that compiling fails now.
    kernels = tempfile.TemporaryDirectory(prefix="layershuffle-", ignore_cleanup_errors=True)
    try:
        with progress_bars() as progress, kernels, sigterm_as_interrupt():
            environment = {"TORCHINDUCTOR_CACHE_DIR": kernels.name, **os.environ}
            bar = progress.add_task("checks", total=len(limits), state="")
            for number, (name, limit) in enumerate(limits.items()):
                progress.update(bar, description=name, completed=number, state=f"{number}/{len(limits)}")
                # The limit is twice what a check should take, so a check is begun if half of its limit is left. If it
                # is stopped because the time of all checks is over, it hasn't failed, but stays left out.
                left = end - time.monotonic()
                if left >= limit / 2:
                    result = _make_in_child(name, folder, min(left, limit), command, environment)
                    if result.seconds < left:
                        all_results[name] = _with_reasons(result, about)
                page.write(all_results, folder, about)
                logger.info("%s: %s, %s", name, all_results[name].state, all_results[name].figure)
    finally:
        # This is done even if the user or a scheduler interrupts the checks.
        page.write(all_results, folder, about)
    return all_results


def _with_reasons(result: CheckResult, about: Mapping[str, Any]) -> CheckResult:
    """The result of a check that was too slow, with the likely reasons."""
    if result.state != "missed":
        return result
    return replace(result, figure=f"{result.figure}; likely reason: {reasons_for_slowness(about)}")


def _make_in_child(
    name: str, folder: Path, limit: float, command: Sequence[str], environment: Mapping[str, str]
) -> CheckResult:
    """The result of a check in a process of its own, which is ended after ``limit`` seconds."""
    # A result that an earlier attempt has left must not be taken for this one's.
    path = folder / f"{name}.json"
    path.unlink(missing_ok=True)
    log = folder / "logs" / f"{name}.txt"
    log.unlink(missing_ok=True)
    # The temporary files of a check go to a folder that is removed afterwards, even if the check is killed.
    scratch = tempfile.mkdtemp(prefix="layershuffle-")
    begun = time.monotonic()
    child = Child([*command, name], log, {**environment, "TMPDIR": scratch}, own_group=True)
    try:
        exit_code = child.wait(limit)
    finally:
        # Even a check that has ended may have left processes behind.
        child.kill()
        shutil.rmtree(scratch, ignore_errors=True)
    seconds = round(time.monotonic() - begun, 1)
    if exit_code is None:
        return CheckResult("failed", f"it took longer than {limit:.0f} s, see {log}", seconds)
    if not path.is_file():
        return CheckResult("failed", child.failure(), seconds)
    result = read(path)
    path.unlink()
    return replace(result, seconds=seconds)
