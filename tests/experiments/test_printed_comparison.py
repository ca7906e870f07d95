"""How a comparison is printed."""

import pytest
from rich.console import Console

from layershuffle.experiments.comparison import printed_tables
from layershuffle.results import tables

METHODS = ["baseline", "layershuffle", "layershuffle-position", "layershuffle-predict", "growing-depth"]
CELL = "39.04 ± 15.82"
STRATEGIES = ["first", "first, shuffled", "even", "even, shuffled", "random", "random, shuffled per batch"]


LAYERS = ["in sequence", "random", "random, half left out"]


@pytest.mark.parametrize(("width", "columns"), [(80, [3, 4, 2, 3]), (120, [3, 6, 3])])
def test_each_method_is_a_row_and_no_table_is_wider_than_the_terminal(width, columns):
    names = ["sequential", "arbitrary, per batch", "arbitrary, fixed"]
    names += [f"keep {kept} {strategy}" for kept in (3, 6, 9) for strategy in STRATEGIES]
    names += [f"in {steps} steps, {layers}" for steps in (12, 4, 2) for layers in LAYERS]
    table = tables.Table(["top-1 %", *METHODS], [[name, *[CELL] * len(METHODS)] for name in names])

    assert {heading.split(",")[0] for heading, _ in printed_tables(table, width)} == {"top-1 %"}
    of_labels = tables.Table(["mAP %", *METHODS], table.rows)
    assert {heading.split(",")[0] for heading, _ in printed_tables(of_labels, width)} == {"mAP %"}

    printed = [part for _, part in printed_tables(table, width)]
    assert [len(part.header) - 1 for part in printed] == columns
    # Only the number of layers in the middle is shown, and of steps.
    assert [name for part in printed for name in part.header[1:]] == [*names[:3], *STRATEGIES, *LAYERS]
    for part in printed:
        assert [row[0] for row in part.rows] == METHODS
        console = Console(width=width, record=True, markup=False)
        console.print(tables.terminal(*part))
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        # No cell is cut or wrapped: a line for each method, below the rule.
        below = lines[next(index for index, line in enumerate(lines) if "─" in line) + 1 :]
        assert [line.count(CELL) for line in below if line.strip()] == [len(part.header) - 1] * len(METHODS)
