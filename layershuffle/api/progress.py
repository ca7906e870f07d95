"""A bar that shows how far a long computation is."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.rank_zero import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN = 0.1
"""A bar is drawn anew at most this often, because there can be thousands of steps a second."""


@contextmanager
def progress_bar(description: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Show a bar on stderr that goes away at the end.

    Args:
        description: what is done, such as "classifying".
        total: how many steps there are.
        unit: what the steps are, such as "batches".

    Yields:
        The function to call after each step.
    """
    console = Console(stderr=True)
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
    ]
    # In a file, rich would leave an empty line. Of several processes, the first one shows the bar.
    is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    is_hidden = not is_first or not console.is_terminal
    # Refreshing by itself would need a thread, which must not run while worker processes are forked.
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=is_hidden) as bar:
        task = bar.add_task(description, total=total)
        shown_at = 0.0

        def advance() -> None:
            nonlocal shown_at
            now = time.monotonic()
            is_due = now - shown_at > SECONDS_BETWEEN
            if is_due:
                shown_at = now
            bar.update(task, advance=1, refresh=is_due)

        yield advance
