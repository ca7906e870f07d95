"""Runs the runs of an experiment on this machine, several at a time, each in a process of its own."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.progress import Progress, TaskID

from layershuffle.experiments.execution import LOG, metrics
from layershuffle.experiments.runs import Run
from layershuffle.processes import Child, progress_bars, sigterm_as_interrupt, usable_cores
from layershuffle.progress_lines import LineClock, last_progress

logger = logging.getLogger(__name__)

SECONDS_TO_FIRST_REPORT = 30.0
"""Until then, processes import what they need and read their data."""
SECONDS_BETWEEN_REPORTS = 60.0
"""At most so often, where there is no terminal, lines say how far each run is."""
CORES = usable_cores()


def run_all(runs: Sequence[Run], folder: Path, jobs: int, command: Sequence[str]) -> int:
    """Execute runs, ``jobs`` at a time, each in a process of its own; returns how many failed or were left out.

    A run that fails is reported, those that need it are left out, and the others go on. If this is interrupted, the
    running processes are stopped; a training saves first.

    Args:
        runs: the runs, each after those it needs.
        folder: of the experiment.
        jobs: how many run at a time.
        command: a program and its arguments; with the name of a run as the last argument it executes the run.

    Raises:
        OSError: if a run's log can't be written.
    """
    with progress_bars() as progress, sigterm_as_interrupt():
        pool = Pool(runs, folder, jobs, command, progress)
        try:
            while pool.is_busy:
                pool.leave_out_what_cannot_run()
                pool.start_what_is_ready()
                pool.show_progress()
                pool.log_progress()
                # Processes take seconds or hours: nobody notices half a second.
                time.sleep(0.5)
                pool.take_out_what_has_ended()
        finally:
            # After Ctrl-C, SIGTERM or an error; otherwise nothing is running.
            pool.stop()
    return len(pool.lost)


@dataclass(frozen=True)
class Running:
    """A run that is being executed.

    Attributes:
        run: the run.
        child: its process.
        slot: its place among the jobs, which decides its GPU.
        bar: its line in the progress.
    """

    run: Run
    child: Child
    slot: int
    bar: TaskID


class Pool:
    """Runs that wait, that are being executed, and that were lost.

    Args:
        runs: as in ``run_all``, and so are ``folder``, ``jobs`` and ``command``.
        progress: where the progress is shown.
    """

    def __init__(
        self, runs: Sequence[Run], folder: Path, jobs: int, command: Sequence[str], progress: Progress
    ) -> None:
        self.folder = folder
        self.jobs = jobs
        self.command = command
        self.progress = progress
        self.count = len(runs)
        self.waiting = list(runs)
        self.running: list[Running] = []
        self.free_slots = list(range(jobs))
        self.lost: set[str] = set()
        self.devices = _visible_devices()
        self.overall = progress.add_task("runs", total=self.count, state="")
        self.clock = LineClock(SECONDS_TO_FIRST_REPORT, SECONDS_BETWEEN_REPORTS)

    @property
    def is_busy(self) -> bool:
        """Whether anything is left to be done."""
        return bool(self.waiting or self.running)

    def leave_out_what_cannot_run(self) -> None:
        """Give up the runs that need a run that was lost."""
        # Runs come after those they need, so that one pass also reaches what needs a run that is left out here.
        for run in list(self.waiting):
            if self.lost & set(run.needs):
                logger.info("%s: left out, it needs a run that failed", run.name)
                self.lost.add(run.name)
                self.waiting.remove(run)

    def start_what_is_ready(self) -> None:
        """Start as many of the runs whose needs are finished as there are free slots."""
        unfinished = {run.name for run in self.waiting} | {running.run.name for running in self.running}
        ready = [run for run in self.waiting if not unfinished & set(run.needs)]
        # The runs that are side by side share the cores. There may be fewer than there are slots, as at the end of an
        # experiment, and then each gets more threads.
        side_by_side = min(self.jobs, len(self.running) + len(ready))
        threads = max(1, CORES // max(1, side_by_side))
        for run in ready[: len(self.free_slots)]:
            self._start(run, threads)

    @property
    def ended(self) -> int:
        """How many runs are finished, have failed or were left out."""
        return self.count - len(self.waiting) - len(self.running)

    def show_progress(self) -> None:
        """Show in the bar how many runs have ended."""
        self.progress.update(self.overall, completed=self.ended, state=f"{self.ended}/{self.count}")

    def log_progress(self) -> None:
        """Where no bars are seen, log now and then how many runs have ended, and how far the others are."""
        if self.progress.console.is_terminal or not self.clock.strikes():
            return
        logger.info("%d of %d runs have ended", self.ended, self.count)
        for running in self.running:
            logger.info("  %s: %s", running.run.name, last_progress(running.child.log) or "has begun")

    def take_out_what_has_ended(self) -> None:
        """Report the runs whose processes have ended, and free their slots."""
        for running in list(self.running):
            name = running.run.name
            exit_code = running.child.exit_code
            if exit_code is None:
                # Of a training, its log says how far it is; other tasks show only their time.
                state = _state_of_training(metrics(self.folder / name))
                self.progress.update(running.bar, state=state)
                continue
            self.running.remove(running)
            self.free_slots.append(running.slot)
            self.progress.remove_task(running.bar)
            if exit_code == 0:
                logger.info("%s: finished", name)
            else:
                self.lost.add(name)
                logger.warning("%s: failed, %s", name, running.child.failure())

    def stop(self) -> None:
        """Ask the processes that are left to end, and wait for all of them."""
        if self.running:
            logger.info("ending the runs (%d), of which trainings save first", len(self.running))
        # All of them at once: each may need a while to save.
        for running in self.running:
            running.child.terminate()
        for running in self.running:
            running.child.wait()

    def _start(self, run: Run, threads: int) -> None:
        # With more threads than cores, runs side by side would stall each other. A variable that the user has set wins.
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        # By slot, so that runs that are side by side are on different GPUs.
        slot = self.free_slots.pop(0)
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[slot % len(self.devices)]
        child = Child([*self.command, run.name], self.folder / run.name / LOG, environment)
        logger.info("%s: started, see %s", run.name, child.log)
        bar = self.progress.add_task(f"  {run.name}", total=None, state="")
        self.running.append(Running(run, child, slot, bar))
        self.waiting.remove(run)


def _visible_devices() -> list[str]:
    """The GPUs, as CUDA_VISIBLE_DEVICES names them."""
    numbers = [str(number) for number in range(torch.cuda.device_count())]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(numbers))
    # An empty variable hides all GPUs.
    return visible.split(",") if visible else []


def _state_of_training(rows: Sequence[dict[str, str]]) -> str:
    """How far a training is, by what it has logged last: the validation loss where there is one."""
    for row in reversed(rows):
        for name in ("val/loss", "train/loss"):
            if row.get(name):
                return f"epoch {row['epoch']}, {name} {row[name][:6]}"
    return ""
