"""Child processes: one way to start them, watch them and end them. What they print goes to a log file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

SECONDS_TO_END = 10.0
"""The seconds that a process has to end by itself before it is killed."""


class Child:
    """A process that this one starts.

    Attributes:
        log: the file that has what the process has printed.

    Args:
        command: a program and its arguments.
        log: a file that the output is appended to; its folder is made.
        environment: environment variables; by default those of this process.
        own_group: whether the process leads a group of its own. Ctrl-C in the terminal doesn't reach it then, and
            ``kill`` also ends what it has started.

    Raises:
        OSError: if the log can't be written, or there is no such program.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        own_group: bool = False,
    ) -> None:
        self.log = log
        # Output is appended, so that a run that was continued has the output of all attempts.
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=environment,
                # A child that asked a question would wait for ever, or take the answer to another.
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=own_group,
            )

    @property
    def pid(self) -> int:
        """The number of the process, and of its group if it has its own."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code, the negative number of the signal that ended the process, or None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for the end, at most so many seconds; returns the exit code, or None if the process still runs."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.exit_code

    def terminate(self) -> None:
        """Ask the process to end. A training saves first."""
        self._process.terminate()

    def kill(self) -> None:
        """End a process with ``own_group`` and all that it has started, within 10 s by force.

        The group gets SIGTERM first, because torchrun ends its own processes then. Windows has no such groups: there
        the process is ended alone, and at once.
        """
        if sys.platform == "win32":
            self._process.kill()
            return
        with suppress(ProcessLookupError):
            for number in (signal.SIGTERM, signal.SIGKILL):
                os.killpg(self.pid, number)
                self._wait_for_group()

    def _wait_for_group(self) -> None:
        """Wait until the time to end is over; raises ProcessLookupError as soon as the group is empty."""
        if sys.platform == "win32":  # It has no groups.
            return
        end = time.monotonic() + SECONDS_TO_END
        while time.monotonic() < end:
            # A process that has ended belongs to the group until its parent has asked for its exit code.
            self._process.poll()
            # Signal 0 does nothing, but raises ProcessLookupError if nobody is there to get it.
            os.killpg(self.pid, 0)
            time.sleep(0.1)

    def failure(self) -> str:
        """Why the process has failed: its own error message, or how it ended and where its log is."""
        # A signal leaves no time to say anything, so that the last line is about something else.
        code = self._process.returncode
        if code < 0:
            return f"its process ended with {signal.Signals(-code).name}, see {self.log}"
        # Our commands end with such a line, which is the best reason there is.
        last_line = last_line_of(self.log)
        if last_line.startswith("error: "):
            return last_line.removeprefix("error: ")
        last_line = last_line or "it is empty, is the disk full?"
        return f"its process ended with the code {code}, see {self.log}: {last_line}"


def last_line_of(log: Path) -> str:
    """The last line of a text file that isn't blank; an empty text if there is none."""
    if not log.is_file():
        return ""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")


def usable_cores() -> int:
    """The number of processor cores that this process may use."""
    if sys.platform == "linux":
        # A container or a scheduler may have given it some of the machine's cores.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within this context SIGTERM, which schedulers send, acts as Ctrl-C does: it raises KeyboardInterrupt."""
    # Otherwise Python would end at once, and the children would go on by themselves.
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def progress_bars() -> Progress:
    """Bars on stderr for those who wait: a description, the bar, the field ``state`` and the time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(12),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
