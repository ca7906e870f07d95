"""What the runs of a setup have shown until now, side by side: tables for the terminal, and files beside the runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from layershuffle.experiments.execution import is_finished, validation_loss
from layershuffle.experiments.runs import Run
from layershuffle.files import write_whole
from layershuffle.report.comparison import comparison
from layershuffle.results import Results, figures, tables

MAX_COLUMNS = 6
"""A table with more columns is too wide for a terminal."""


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
    title = f"{data.name}: {data.images} test images, {random_orders} draws of each random order"
    table_path = folder / setup / "table.md"
    plot_path = folder / setup / "overview.png"
    write_whole(table_path, f"{tables.markdown(header, rows)}\n{caption}\n")
    figures.save(figures.overview(_pooled(results), title), plot_path)
    # With many methods each becomes a row instead of a column. Then there is no room for the rows of pruned orders, of
    # which there are many: only the file has them.
    if len(header) > MAX_COLUMNS:
        short = [row for row in rows if not row[0].startswith("keep")]
        header, rows = _transposed(header, short)
    console.print(tables.terminal(header, rows, title))
    console.print(caption)
    console.print(f"table: {table_path}\nplot: {plot_path}")


def compare_trials(setup: str, runs: Sequence[Run], folder: Path, console: Console) -> None:
    """Print the validation losses of the finished trials of a grid, if there are any, and save them."""
    points: list[str] = []
    # By method, and by point of the grid.
    losses: dict[str, dict[str, float]] = {}
    for run in runs:
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
        texts = [f"{by_point[point]:.4f}" if point in by_point else "missing" for point in points]
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


def _transposed(header: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The table whose rows are the columns of this one."""
    first, *others = zip(header, *rows)
    return list(first), [list(other) for other in others]
