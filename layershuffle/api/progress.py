"""Shows how far a long computation is: as a bar, or in the lines of a log where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from layershuffle.plurals import form
from layershuffle.progress_lines import LineClock, ProgressLines

SECONDS_BETWEEN = 0.1
"""A bar is drawn anew at most this often, because there can be thousands of steps a second."""


@contextmanager
def progress_bar(
    description: str, total: int, unit: str, clock: LineClock | None = None
) -> Iterator[Callable[..., None]]:
    """Show a bar on stderr that goes away at the end. Where that is no terminal, log a line now and then.

    Args:
        description: what is done, such as "classifying".
        total: how many steps there are.
        unit: what a step is, such as "batch".
        clock: says when lines are due. Many short computations in a row share one.

    Yields:
        The function to call after each step, or with the number of steps that were done.
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
    lines = ProgressLines(description, total, unit, clock=clock)
    # Refreshing by itself would need a thread, which must not run while worker processes are forked.
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=is_hidden) as bar:
        task = bar.add_task(description, total=total)
        shown_at = 0.0
        done = 0

        def advance(steps: int = 1) -> None:
            nonlocal shown_at, done
            done += steps
            if is_first and not console.is_terminal:
                lines.tell(done)
            now = time.monotonic()
            is_due = now - shown_at > SECONDS_BETWEEN
            if is_due:
                shown_at = now
            bar.update(task, advance=steps, refresh=is_due)

        yield advance
