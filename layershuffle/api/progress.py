"""Shows how far a long computation is: as a bar, or in the lines of a log where there is no terminal."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from layershuffle.plurals import counted, form

logger = logging.getLogger(__name__)

SECONDS_BETWEEN = 0.1
"""A bar is drawn anew at most this often, because there can be thousands of steps a second."""
SECONDS_BETWEEN_LINES = 30.0
"""So often a line says how far it is where there is no terminal."""


class _LogLines:
    """Logs a line every so often. All computations of a process share the clock, as a search has many short ones."""

    logged_at: float | None = None

    @classmethod
    def tell(cls, description: str, done: int, total: int, unit: str) -> None:
        """Log how far it is, if the last line is long enough ago."""
        now = time.monotonic()
        if cls.logged_at is None:
            cls.logged_at = now  # the clock begins with the first step
        if now - cls.logged_at >= SECONDS_BETWEEN_LINES:
            cls.logged_at = now
            logger.info("%s: %d of %s", description, done, counted(total, unit))


@contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr that goes away at the end. Where that is no terminal, log a line every half a minute.

    Args:
        description: what is done, such as "classifying".
        total: how many steps there are.
        unit: what a step is, such as "batch".

    Yields:
        The function to call after each step.
    """
    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(form(total, unit)),
        TimeRemainingColumn(),
    ]
    # In a file, rich would leave an empty line. Of several processes, the first one shows how far it is.
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    is_hidden = not is_first or not console.is_terminal
    # Refreshing by itself would need a thread, which must not run while worker processes are forked.
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=is_hidden) as bar:
        task = bar.add_task(description, total=total)
        shown_at = 0.0
        done = 0

        def advance() -> None:
            nonlocal shown_at, done
            done += 1
            if is_first and not console.is_terminal:
                _LogLines.tell(description, done, total, unit)
            now = time.monotonic()
            is_due = now - shown_at > SECONDS_BETWEEN
            if is_due:
                shown_at = now
            bar.update(task, advance=1, refresh=is_due)

        yield advance
