"""What the runs of a setup have shown until now, side by side: tables for the terminal, and files beside the runs."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from layershuffle.experiments.execution import is_finished, validation_loss
from layershuffle.experiments.runs import Run
from layershuffle.files import write_whole
from layershuffle.plurals import counted, form
from layershuffle.report.comparison import comparison
from layershuffle.results import Results, figures, tables
from layershuffle.results.tables import Rows

MAX_TABLES = 4
"""So many tables of a comparison are printed; the file has all columns."""


def compare(setup: str, runs: Sequence[Run], folder: Path, console: Console) -> None:
    """Print what the finished runs of a setup have shown, if there are any, and save it beside them.

    Args:
        setup: its name.
        runs: its runs.
        folder: of the experiment.
        console: where to print.
    """
    compare_trials(setup, runs, folder, console)
    # Methods are compared by their first evaluation; only the report shows the others.
    results = _first_results(runs, folder)
    if not results:
        return
    (header, rows), caption = comparison(results)
    data = results[0].data
    random_orders = results[0].evaluation.random_orders
    samples = f"{random_orders} {form(random_orders, 'sample')} of each random order"
    title = f"{data.name}: {counted(data.images, 'test image')}, {samples}"

    # The files have everything.
    table_path = folder / setup / "table.md"
    plot_path = folder / setup / "overview.png"
    write_whole(table_path, f"{tables.markdown(header, rows)}\n{caption}\n")
    figures.save(figures.overview(_pooled(results), title), plot_path)

    # The terminal has room for a part of it. What is a row in the file is a column here, beside that of the methods.
    printed = printed_tables(tables.Table(header, rows), console.width)[:MAX_TABLES]
    console.print(title)
    for heading, table in printed:
        console.print()
        console.print(tables.terminal(*table, heading))
    console.print()
    console.print(caption)
    columns = sum(len(table.header) - 1 for _, table in printed)
    console.print(f"table: {table_path} ({columns} of its {counted(len(rows), 'row')} above)", soft_wrap=True)
    console.print(f"plot: {plot_path}", soft_wrap=True)


def printed_tables(table: tables.Table, width: int) -> list[tuple[str, tables.Table]]:
    """A comparison as tables that a terminal has room for, with their headings.

    Each method is a row. Of the numbers of layers to keep, only the one in the middle is shown, and of the numbers of
    steps likewise.

    Args:
        table: the comparison, in which each method is a column.
        width: of the terminal, in characters.
    """
    # Sort the rows by what their names begin with. The heading of a part takes the place of that beginning.
    full_depth: Rows = []
    by_kept: dict[str, Rows] = {}
    by_steps: dict[str, Rows] = {}
    for name, *cells in table.rows:
        kept = re.fullmatch(r"keep (\d+) (.*)", name)
        steps = re.fullmatch(r"(in \d+ steps?), (.*)", name)
        if kept:
            heading = f"keep {counted(int(kept[1]), 'layer')}"
            by_kept.setdefault(heading, []).append([kept[2], *cells])
        elif steps:
            heading = steps[1]
            by_steps.setdefault(heading, []).append([steps[2], *cells])
        else:
            full_depth.append([name, *cells])

    # The first heading of a comparison says what the numbers are, such as "top-1 %".
    quality = table.header[0]
    parts = {quality: full_depth}
    for by_heading in (by_kept, by_steps):
        if by_heading:
            headings = list(by_heading)
            middle = headings[(len(headings) - 1) // 2]
            parts[f"{quality}, {middle}"] = by_heading[middle]

    # A part may need several tables, which all begin with the column of the methods.
    header = ["method", *table.header[1:]]
    printed: list[tuple[str, tables.Table]] = []
    for heading, rows in parts.items():
        split = _split(rows, table.header, width)
        printed += [(heading, _transposed(header, rows_that_fit)) for rows_that_fit in split]
    return printed


def _split(rows: Rows, header: list[str], width: int) -> list[Rows]:
    """Split rows, which become columns, so that each part fits into the width of a terminal.

    Args:
        rows: each with its name first.
        header: becomes the first column, which every part has.
        width: of the terminal, in characters.
    """
    width_of_names = max(len(name) for name in header)
    parts: list[Rows] = []
    room = 0
    for row in rows:
        # A column needs a space and room for its widest cell. Its heading wraps, see ``tables.terminal``.
        name, *cells = row
        widest_cell = max(len(cell) for cell in cells)
        needed = 1 + max(widest_cell, min(13, len(name)))
        if needed > room:
            parts.append([])
            room = width - width_of_names - 2
        parts[-1].append(row)
        room -= needed
    return parts


def compare_trials(setup: str, runs: Sequence[Run], folder: Path, console: Console) -> None:
    """Print the validation losses of the finished trials of a grid, if there are any, and save them."""
    # All points of the grid, and the loss of each trial that is finished, by its method and its point.
    points: list[str] = []
    losses: dict[str, dict[str, float]] = {}
    for run in runs:
        # A run without a point is no trial.
        if not run.point:
            continue
        if run.point not in points:
            points.append(run.point)
        if is_finished(run, folder):
            losses.setdefault(run.kind, {})[run.point] = validation_loss(folder / run.name)
    if not losses:
        return

    header = ["cross-entropy", *points, "best"]
    rows = []
    for method, by_point in losses.items():
        texts = []
        for point in points:
            text = f"{by_point[point]:.4f}" if point in by_point else "missing"
            texts.append(text)
        # Which point is best is only known once the method was tried with all of them.
        best = ""
        if len(by_point) == len(points):
            best = min(by_point, key=by_point.__getitem__)
        rows.append([method, *texts, best])
    path = folder / setup / "grid.md"
    write_whole(path, tables.markdown(header, rows))
    title = f"{setup}: lowest loss on held-out training images, in the orders of each method"
    console.print(tables.terminal(header, rows, title))
    console.print(f"grid: {path}")


def _first_results(runs: Sequence[Run], folder: Path) -> list[Results]:
    """The results of each run's first evaluation, if it was made."""
    results = []
    for run in runs:
        evaluations = [folder / run.name / task.output for task in run.tasks if task.action == "evaluate"]
        if evaluations and evaluations[0].is_file():
            results.append(Results.load(evaluations[0]))
    return results


def _pooled(results: Sequence[Results]) -> list[Results]:
    """One ``Results`` for each method, with the scores of all its seeds."""
    pooled: dict[str, Results] = {}
    for run_results in results:
        label = run_results.label
        # A list of its own, because the scores of the other seeds are added to it.
        if label not in pooled:
            pooled[label] = replace(run_results, scores=[])
        pooled[label].scores.extend(run_results.scores)
    return list(pooled.values())


def _transposed(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tables.Table:
    """The table whose rows are the columns of this one."""
    columns = [list(column) for column in zip(header, *rows)]
    return tables.Table(columns[0], columns[1:])
