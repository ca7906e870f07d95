"""The results record, its file, and what tables and plots make of it."""

import json
from statistics import fmean, stdev

import pytest
from matplotlib.image import imread
from rich.console import Console

from layershuffle.files import write_whole
from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.reproduction.collect import comparison
from layershuffle.results import figures, tables
from layershuffle.results.record import Results, Score, summarise


def score(protocol, top1, order=None, **variant):
    return Score(protocol, variant, order, images=50, top1=top1, top5=1.0, loss=0.5, position_accuracy=None)


def results(method="layershuffle", **changes):
    scores = [
        score("sequential", 0.9, "0 1 2"),
        score("arbitrary", 0.75, reading="per batch"),
        score("arbitrary", 0.7, "1 0 2", reading="fixed"),
        score("arbitrary", 0.8, "2 1 0", reading="fixed"),
        *(
            score("pruned", 0.1 * kept + 0.01 * draw, "0", kept=kept, strategy=strategy, sequence=sequence)
            for kept in (1, 2)
            for strategy in ("first", "random")
            for sequence in ("original", "random")
            for draw in range(3)
        ),
    ]
    fields = {
        "model": {"name": "best", "method": method, "config": {"num_classes": 10}},
        "data": {"name": "Digits", "images": 50},
        "evaluation": {"seed": 0},
        "environment": {"device": "cpu"},
        "scores": scores,
    }
    return Results(**fields | changes)


def test_a_file_reads_back(tmp_path):
    path = tmp_path / "deep" / "results.json"
    results().save(path)
    assert Results.load(path) == results()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_files_that_are_no_results_say_why(tmp_path):
    whole = tmp_path / "whole.json"
    results().save(whole)
    content = json.loads(whole.read_text())
    for name, text, complaint in (
        ("cut", whole.read_text()[:-30], "is damaged"),
        ("binary", "\ud800", "is damaged"),
        ("list", "[]", "not a results file of this version"),
        ("version", json.dumps(content | {"layershuffle_results": 99}), "format 99, not 2"),
        (
            "short",
            json.dumps({k: v for k, v in content.items() if k != "scores"}),
            "not a whole results file: 'scores'",
        ),
        ("other", json.dumps(content | {"scores": [{"top1": [1]}]}), "not a whole results file"),
    ):
        path = tmp_path / f"{name}.json"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ValueError, match=complaint):
            Results.load(path)
    with pytest.raises(ValueError, match="there is no file"):
        Results.load(tmp_path / "nowhere.json")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    results().save(path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ValueError, match=r"results\.json could not be written: No space left on device"):
        results("other").save(path)
    assert Results.load(path) == results()
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="could not be written"):
        write_whole(tmp_path / "file" / "results.json", "")


def test_summaries():
    values = [0.5, 0.7, 0.6, 0.9]
    summary = summarise(values)
    assert (summary.n, summary.min, summary.max) == (4, 0.5, 0.9)
    assert summary.mean == pytest.approx(fmean(values))
    assert summary.std == pytest.approx(stdev(values))
    # Student's t for three degrees of freedom, from a printed table.
    assert summary.ci95 == pytest.approx(3.182 * stdev(values) / 2, rel=1e-3)
    assert summarise([0.5]).std is None
    assert summarise([0.5]).ci95 is None


def test_tables():
    header, rows = tables.full_depth(results())
    assert header == ["order", "n", "top-1 %", "min", "max", "±95%", "top-5", "loss"]
    assert rows[0][:5] == ["sequential", "1", "90.00", "90.00", "90.00"]
    assert rows[2][:5] == ["arbitrary, fixed", "2", "75.00 (7.07)", "70.00", "80.00"]
    assert len(rows) == 3
    header, rows = tables.grid(results(), PROTOCOLS["pruned"])
    assert header == ["layers kept", "1", "2"]
    assert rows[0] == ["first", "11.00 (1.00)", "21.00 (1.00)"]
    assert [row[0] for row in rows] == ["first", "first, shuffled", "random", "random, shuffled"]


def test_the_comparison_names_what_is_missing():
    partly = results("baseline", scores=[score("sequential", 0.95, "0 1 2")])
    header, rows = comparison([partly, results()])
    assert header == ["top-1 %", "baseline", "layershuffle"]
    assert rows[0] == ["sequential", "95.00", "90.00"]
    assert rows[1] == ["arbitrary, per batch", "missing", "75.00"]
    text = tables.markdown(header, rows)
    assert text.splitlines()[:3] == [
        "| top-1 % | baseline | layershuffle |",
        "| --- | ---: | ---: |",
        "| sequential | 95.00 | 90.00 |",
    ]


def test_the_paper_s_four_methods_fit_a_terminal_of_80_columns():
    methods = ["baseline", "layershuffle", "layershuffle-position", "layershuffle-predict"]
    header, rows = comparison([results(method) for method in methods])
    console = Console(width=80, record=True, file=None)
    with console.capture() as capture:
        console.print(tables.terminal(header, rows, "title"))
    lines = capture.get().splitlines()
    assert sum("shuffled" in line and "keep" in line for line in lines) == 4
    assert all("(" not in line or line.count(")") == 4 for line in lines)


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_plots_are_written(tmp_path, name):
    figures.save(
        figures.overview([results(), results("baseline", scores=results().scores[:4])], "title"), tmp_path / name
    )
    if name.endswith("png"):
        picture = imread(tmp_path / name)
        assert picture.shape[1] > picture.shape[0] > 300
        assert picture[..., :3].std() > 0.05
    else:
        assert "layers kept" in (tmp_path / name).read_text() or "<svg" in (tmp_path / name).read_text()
