"""Scores as tables."""

import csv
import io

from example_results import results, score
from rich.console import Console

from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.report.comparison import comparison
from layershuffle.results import estimate, tables


def test_tables():
    header, (sequential, per_batch, fixed) = tables.full_depth(results())
    assert header == ["order", "n", "top-1 %", "std", "min", "max", "top-5", "loss", "ECE %"]
    assert sequential[:2] == ["sequential", "1"]
    assert sequential[3:6] == ["", "90.00", "90.00"]
    assert per_batch[:3] == ["arbitrary, per batch", "1", "75.00"]
    of_fixed = estimate([results().of("arbitrary", reading="fixed")])
    mean = f"75.00 ± {100 * of_fixed.ci95:.2f}"
    assert fixed[:6] == ["arbitrary, fixed", "2", mean, "7.07", "70.00", "80.00"]

    header, rows = tables.grid(results(), PROTOCOLS["pruned"])
    assert header == ["layers kept", "1", "2"]
    assert [row[0] for row in rows] == ["first", "first, shuffled", "random", "random, shuffled"]
    of_first = estimate([results().of("pruned", kept=1, strategy="first", sequence="original")])
    assert rows[0][1] == tables.percent(of_first)


def test_the_paper_s_four_methods_fit_a_terminal_of_80_columns():
    methods = ["baseline", "layershuffle", "layershuffle-position", "layershuffle-predict"]
    (header, rows), _ = comparison([results(method) for method in methods])
    console = Console(width=80, record=True, file=None)
    with console.capture() as capture:
        console.print(tables.terminal(header, rows, "title"))
    lines = capture.get().splitlines()
    # Ten rows have intervals: sequential, fixed orders, and eight with fewer layers, of which four are shuffled. None
    # of them is wrapped.
    assert sum("shuffled" in line and "keep" in line for line in lines) == 4
    assert all(line.count("±") in (0, 4) for line in lines)
    assert sum("±" in line for line in lines) == 10


def test_an_interval_wider_than_all_accuracies_is_not_shown():
    wide = estimate([[score("arbitrary", 0.1, order="1 0"), score("arbitrary", 0.7, order="0 1")]])
    assert wide.ci95 > 0.5
    assert tables.percent(wide) == "40.00 ± n/a"
    assert tables.TOO_WIDE in tables.meaning({"a": 1}, per_batch=False, rows=[["sequential", "40.00 ± n/a"]])
    assert tables.TOO_WIDE not in tables.meaning({"a": 1}, per_batch=False, rows=[["n/a", "40.00 ± 1.00"]])


def test_no_cell_of_a_csv_file_is_a_formula_and_all_are_utf_8():
    rows = [["=cmd|' /C calc'!A0", "-1.5", "+3", "@sum", "-x", "caf\udce9"]]
    text = tables.as_csv(["a", "b", "c", "d", "e", "f"], rows)
    text.encode()
    (_, row) = csv.reader(io.StringIO(text))
    assert row == ["'=cmd|' /C calc'!A0", "-1.5", "+3", "'@sum", "'-x", "caf\\udce9"]


def test_headings_wrap_before_cells_do():
    header = ["nodes and policy", "requests/s", "% of ideal", "p50 s", "p95 s", "p99 s", "layers missed", "% failed"]
    row = ["10,000 sequential-skip", "0.252", "129.0 (91-184)", "96", "125", "204", "1.07", "0.0"]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(tables.terminal(header, [row]))
    assert row[0] in capture.get()
    assert capture.get().splitlines()[-1].split() == " ".join(row).split()
    assert tables.terminal(["order", "ms / image"], [["0 1", "0.284"]]).columns[1].header == "ms / image"


def test_the_names_of_long_classes_are_shown_whole_beside_other_long_cells():
    name = "a name of more than twenty letters"
    header = ["class", "images", "sequential", "sequential: taken for", "arbitrary, fixed: taken for"]
    console = Console(width=80)
    with console.capture() as capture:
        console.print(tables.terminal(header, [[name, "3", "50.00", f"{name} 100%", f"{name} 50%"]]))
    # The other cells stand in the row's first line, behind two spaces or more.
    first_column = [line.split("  ")[0].strip() for line in capture.get().splitlines()]
    assert name in " ".join(first_column)


def test_columns_are_numbers_and_then_texts():
    scores = [score("mine", 0.1, n=10), score("mine", 0.2, n="all"), score("mine", 0.3, n=9), score("mine", 0.4, n="a")]
    header, rows = tables.of(results(scores=scores))["mine"]
    assert header == ["n", "9", "10", "a", "all"]
    (row,) = rows
    assert [cell.split(" ±")[0] for cell in row] == ["top-1 %", "30.00", "10.00", "40.00", "20.00"]


def test_a_protocol_of_which_a_score_has_no_column_has_rows():
    scores = [score("mine", 0.1, n=1), score("mine", 0.2)]
    found = tables.of(results(scores=scores))
    assert [row[0] for row in found["orders"].rows] == ["mine, 1", "mine"]
    assert "mine" not in found


def test_long_names_of_columns_keep_their_beginning_and_end(capsys):
    order = "given, 11 10 9 8 7 6 5 4 3 2 1 0"
    header = ["class", "images", "sequential", "sequential: taken for", order, f"{order}: taken for"]
    row = ["v", "1", "0.00", "w 100%", "100.00", "w 100%"]
    Console(width=80).print(tables.terminal([*header, "another", "and another"], [[*row, "0.00", "w 100%"]]))

    *head, _line, _cells = capsys.readouterr().out.splitlines()
    assert len(head) <= 5
    words = " ".join(head).split()
    assert "given," in words
    assert words.count("taken") == 2
