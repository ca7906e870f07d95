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
    """A table with the methods side by side is printed as several tables with a row for each method.

    ``columns`` says how many columns of numbers each of them has.
    """
    of_all_layers = ["sequential", "arbitrary, per batch", "arbitrary, fixed"]
    names = of_all_layers.copy()
    for kept in (3, 6, 9):
        names += [f"keep {kept} {strategy}" for strategy in STRATEGIES]
    for steps in (12, 4, 2):
        names += [f"in {steps} steps, {layers}" for layers in LAYERS]
    table = tables.Table(["top-1 %", *METHODS], [[name, *[CELL] * len(METHODS)] for name in names])

    # Each heading begins with what the numbers are.
    assert {heading.split(",")[0] for heading, _ in printed_tables(table, width)} == {"top-1 %"}
    of_labels = tables.Table(["mAP %", *METHODS], table.rows)
    assert {heading.split(",")[0] for heading, _ in printed_tables(of_labels, width)} == {"mAP %"}

    printed = [part for _, part in printed_tables(table, width)]
    names_of_columns = []
    for part, count in zip(printed, columns, strict=True):
        _, *names_in_part = part.header
        assert len(names_in_part) == count
        names_of_columns += names_in_part
    # Only the number of layers in the middle is shown, and of steps.
    assert names_of_columns == [*of_all_layers, *STRATEGIES, *LAYERS]

    for part, count in zip(printed, columns):
        assert [row[0] for row in part.rows] == METHODS
        console = Console(width=width, record=True, markup=False)
        console.print(tables.terminal(*part))
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        # No cell is cut or wrapped: below the rule there is a line for each method.
        rule = next(index for index, line in enumerate(lines) if "─" in line)
        below = [line for line in lines[rule + 1 :] if line.strip()]
        assert [line.count(CELL) for line in below] == [count] * len(METHODS)
