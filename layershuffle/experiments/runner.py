"""Runs the cells of an experiment, on this machine or as SLURM jobs, and compares what they found."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from layershuffle.errors import UserError
from layershuffle.experiments import cells
from layershuffle.experiments.definition import Cell
from layershuffle.files import write_whole
from layershuffle.report.collect import comparison
from layershuffle.results import Results, figures, tables

CORES = len(os.sched_getaffinity(0))
LOG = "log.txt"
"""This file in a cell's folder has what its processes on this machine printed."""


def run(missing: Sequence[Cell], folder: Path, jobs: int, console: Console, command: Sequence[str]) -> int:
    """Run cells on this machine, ``jobs`` at a time, each in a process of its own; returns how many were lost.

    A cell that breaks is reported, those that need it are left out, and the others go on. If this is interrupted, the
    running cells are stopped.

    Args:
        missing: the cells, each after those it needs.
        folder: of the experiment.
        jobs: how many run at a time.
        console: for what is reported.
        command: a program and its arguments; with the name of a cell as the last argument it runs the cell.

    Raises:
        OSError: if a cell's log can't be written.
    """
    waiting = list(missing)
    running: dict[str, tuple[Cell, subprocess.Popen[bytes], int, TaskID]] = {}
    lost: set[str] = set()
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count())))).split(",")
    slots = list(range(jobs))
    columns = [TextColumn("{task.description}"), BarColumn(12), TextColumn("{task.fields[state]}"), TimeElapsedColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        overall = progress.add_task("cells", total=len(missing), state="")
        sigterm = signal.signal(
            signal.SIGTERM, signal.default_int_handler
        )  # A scheduler's SIGTERM acts as Ctrl-C does.
        try:
            while waiting or running:
                for cell in [cell for cell in waiting if lost & set(cell.needs)]:
                    console.print(f"{cell.name}: left out, it needs a cell that failed")
                    lost.add(cell.name)
                    waiting.remove(cell)
                unfinished = {cell.name for cell in waiting} | running.keys()
                ready = [cell for cell in waiting if not unfinished & set(cell.needs)]
                threads = max(1, CORES // max(1, min(jobs, len(running) + len(ready))))
                for cell, slot in zip(ready[: len(slots)], list(slots)):
                    # If nothing is said, cells that run side by side would stall each other with too many threads.
                    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
                    if devices != [""]:
                        environment["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
                    log = folder / cell.name / LOG
                    log.parent.mkdir(parents=True, exist_ok=True)
                    with log.open("a") as output:
                        process = subprocess.Popen(
                            [*command, cell.name],
                            env=environment,
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=subprocess.STDOUT,
                        )
                    if not console.is_terminal:  # which shows the progress
                        console.print(f"{cell.name}: started, see {log}", soft_wrap=True)
                    running[cell.name] = (
                        cell,
                        process,
                        slot,
                        progress.add_task(f"  {cell.name}", total=None, state=""),
                    )
                    waiting.remove(cell)
                    slots.remove(slot)
                done = len(missing) - len(waiting) - len(running)
                progress.update(overall, completed=done, state=f"{done}/{len(missing)}")
                time.sleep(0.5)
                for cell, process, slot, task in list(running.values()):
                    if process.poll() is None:
                        progress.update(task, state=_state(cells.metrics(folder / cell.name)))
                        continue
                    del running[cell.name]
                    slots.append(slot)
                    progress.remove_task(task)
                    if process.returncode:
                        lost.add(cell.name)
                        console.print(
                            f"{cell.name}: {_reason(folder / cell.name / LOG, process.returncode)}", soft_wrap=True
                        )
                    else:
                        console.print(f"{cell.name}: finished")
        finally:
            for _, process, *_ in running.values():
                process.terminate()  # A training saves first.
            for _, process, *_ in running.values():
                process.wait()
            signal.signal(signal.SIGTERM, sigterm)
    return len(lost)


def submit(
    missing: Sequence[Cell],
    folder: Path,
    parameters: dict[str, Any],
    console: Console,
    perform: Callable[[Cell, Path], None],
) -> None:
    """Submit one SLURM job per cell, each to start once the cells that it needs have succeeded.

    Raises:
        UserError: if submitit is not installed, there is no SLURM here, or it refuses the parameters.
    """
    try:
        import submitit
    except ImportError as error:
        raise UserError("SLURM jobs need submitit: pip install 'layershuffle[slurm]'") from error
    logs = folder.absolute() / "slurm"
    jobs: dict[str, str] = {}
    try:
        executor = submitit.AutoExecutor(logs, cluster="slurm")
        for cell in missing:
            record = folder / cell.name / "slurm_job"
            if record.is_file():
                job: Any = submitit.SlurmJob(logs, record.read_text())
                if not job.done():
                    jobs[cell.name] = job.job_id
                    console.print(f"{cell.name}: job {job.job_id} is at it")
                    continue
            needed = [jobs[name] for name in cell.needs if name in jobs]
            more = dict(parameters.get("slurm_additional_parameters") or {})
            more |= {"dependency": f"afterok:{':'.join(needed)}"} if needed else {}
            executor.update_parameters(
                **{"name": cell.name.replace("/", "-"), **parameters, "slurm_additional_parameters": more}
            )
            jobs[cell.name] = executor.submit(perform, cell, folder.absolute()).job_id
            write_whole(record, jobs[cell.name])
            console.print(f"{cell.name}: job {jobs[cell.name]}")
    except (RuntimeError, NameError, TypeError, submitit.core.utils.FailedJobError) as error:
        raise UserError(f"SLURM took {len(jobs)} of {len(missing)} jobs, then: {error}") from error
    console.print("the same command without --slurm runs what they leave undone, and shows the results")


def plan(wanted: Sequence[Cell], missing: Sequence[Cell], folder: Path) -> str:
    """The cells, and which of them are to run."""
    lines = [f"{cell.name}: {'to run' if cell in missing else 'finished'}" for cell in wanted]
    return "\n".join([f"{len(wanted)} cells in {folder}, {len(missing)} to run", *lines])


def compare(setup: str, its: Sequence[Cell], folder: Path, console: Console) -> None:
    """Print what the finished cells of a setup found, if there are any, and save it beside them."""
    _show_grid(setup, its, folder, console)
    evaluations = [
        [folder / cell.name / task.output for task in cell.tasks if task.command == "evaluate"] for cell in its
    ]
    several = [Results.load(path) for paths in evaluations for path in paths[:1] if path.is_file()]
    if not several:
        return
    header, rows, caption = comparison(several)
    pooled: dict[str, Results] = {}
    for results in several:
        pooled.setdefault(results.label, replace(results, scores=[])).scores.extend(results.scores)
    data, draws = several[0].data, several[0].evaluation.random_orders
    title = f"{data.name}: {data.images} test images, {draws} draws of each random order"
    write_whole(folder / setup / "table.md", f"{tables.markdown(header, rows)}\n{caption}\n")
    figures.save(figures.overview(list(pooled.values()), title), folder / setup / "overview.png")
    if len(header) > 6:  # Too wide for a terminal: show a row for each method, and the pruned orders only in the file.
        rows = [list(column) for column in zip(header, *(row for row in rows if not row[0].startswith("keep")))]
        header, *rows = rows
    console.print(tables.terminal(header, rows, title))
    console.print(caption)
    console.print(f"table: {folder / setup}/table.md\nplot: {folder / setup}/overview.png")


def _show_grid(setup: str, its: Sequence[Cell], folder: Path, console: Console) -> None:
    losses: dict[str, dict[str, float]] = {}  # by method and point of the grid
    points: dict[str, None] = {}
    for cell in its:
        match cell.name.split("/"):
            case [_, method, "grid", point, _]:
                points[point] = None
                if cells.finished(cell, folder):
                    losses.setdefault(method, {})[point] = cells.validation_loss(folder / cell.name)
    if not losses:
        return
    rows = [
        [method, *(f"{found[point]:.4f}" if point in found else "missing" for point in points)]
        + [min(found, key=lambda point: found[point]) if len(found) == len(points) else ""]
        for method, found in losses.items()
    ]
    header = ["cross-entropy", *points, "best"]
    write_whole(folder / setup / "grid.md", tables.markdown(header, rows))
    title = f"{setup}: lowest loss on held-out training images, in the orders of each method"
    console.print(tables.terminal(header, rows, title))
    console.print(f"grid: {folder / setup}/grid.md")


def _state(rows: Sequence[dict[str, str]]) -> str:
    """How far a training is, by what it has logged."""
    for row in reversed(rows):
        for name in ("val/loss", "train/loss"):
            if row.get(name):
                return f"epoch {row['epoch']}, {name} {row[name][:6]}"
    return ""


def _reason(log: Path, exitcode: int) -> str:
    lines = log.read_text(errors="replace").split("\n") if log.is_file() else []
    last = next((line for line in reversed(lines) if line.strip()), "")
    if exitcode > 0 and last.startswith("error: "):
        return f"failed, {last.removeprefix('error: ')}"
    return f"failed ({f'signal {-exitcode}' if exitcode < 0 else last or 'is the disk full?'}), see {log}"
