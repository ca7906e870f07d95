"""Tells in lines of a log how far a long computation is, for where there is no terminal."""

import logging
import math
import os
import re
import time
from pathlib import Path

from layershuffle.plurals import counted

logger = logging.getLogger(__name__)

SECONDS_TO_FIRST_LINE = 5.0
"""The first line comes early: whoever waits sees that something happens, and how long it will take."""
SECONDS_BETWEEN_LINES = 30.0
"""At most so often a line says how far it is."""

LINE = re.compile(r".+: \S+ of .+, about .+ left")
"""What the lines look like, in the log of another process."""
TAIL = 1 << 14
"""The last line that tells of progress is looked for in so many bytes at the end of a log."""


class LineClock:
    """Says when the next line is due: soon after the beginning, and then every so often.

    Args:
        first: the seconds until the first line.
        between: the seconds between two lines.
    """

    def __init__(self, first: float = SECONDS_TO_FIRST_LINE, between: float = SECONDS_BETWEEN_LINES) -> None:
        self.between = between
        self._due_at = time.monotonic() + first

    def strikes(self) -> bool:
        """Whether a line is due now. The next one is due after a while again."""
        now = time.monotonic()
        if now < self._due_at:
            return False
        # From now and not from when it was due: a slow step would be followed by several lines at once.
        self._due_at = now + self.between
        return True


class ProgressLines:
    """Logs how much of a computation is done, how fast it is, and about how long the rest will take.

    Args:
        description: what is done, such as "classifying".
        total: how many steps there are; infinite if there is no end.
        unit: what a step is, such as "batch".
        done: how many of them an earlier process has done.
        clock: says when lines are due. Many short computations in a row share one.
    """

    def __init__(
        self, description: str, total: float, unit: str, done: float = 0, clock: LineClock | None = None
    ) -> None:
        self.description = description
        self.total = total
        self.unit = unit
        self._clock = clock or LineClock()
        self._done_before = done
        self._begun_at = time.monotonic()

    def tell(self, done: float) -> None:
        """Log a line if one is due and at least a step has been done.

        Args:
            done: how many steps are done, with those of an earlier process.
        """
        # Those of an earlier process took none of this one's time, and would make it look faster.
        steps = done - self._done_before
        if steps > 0 and self._clock.strikes():
            seconds_per_step = (time.monotonic() - self._begun_at) / steps
            logger.info("%s: %s", self.description, self._state(done, seconds_per_step))

    def _state(self, done: float, seconds_per_step: float) -> str:
        # Whichever is above 1 is the easier to read.
        if seconds_per_step > 1:
            speed = f"{seconds_per_step:.3g} s each"
        else:
            speed = f"{1 / max(seconds_per_step, 1e-9):.3g} a second"
        if math.isinf(self.total):
            return f"{counted(round(done), self.unit)}, {speed}"
        left = max(0.0, self.total - done) * seconds_per_step
        return f"{done:,.0f} of {counted(self.total, self.unit)}, {speed}, about {duration(left)} left"


def duration(seconds: float) -> str:
    """A number of seconds as people say it, such as "40 s", "12 min" or "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def last_progress(log: Path) -> str | None:
    """The last line of a log that tells how far a computation is; None if there is none near its end."""
    with log.open("rb") as file:
        # Logs of long trainings have megabytes, and this is asked for again and again.
        file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        if LINE.fullmatch(line):
            return line
    return None
