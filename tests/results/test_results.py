"""The results record, its file, and what tables and plots make of it."""

import itertools
import json
import math
from dataclasses import replace
from statistics import NormalDist, fmean, stdev

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from layershuffle.files import write_whole
from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.report.comparison import comparison
from layershuffle.results import (
    DataInfo,
    Environment,
    EvaluationInfo,
    ModelInfo,
    Results,
    Score,
    estimate,
    figures,
    summarise,
    tables,
)
from layershuffle.results.measures import ByClassCounts, OrderCounts
from layershuffle.results.measures.by_class import MOST_IN_PICTURE


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
        "model": ModelInfo(name="best", method=method, config={"name": "vit_tiny_patch16_224", "num_classes": 10}),
        "data": DataInfo(name="Digits", images=50),
        "evaluation": EvaluationInfo(seed=0),
        "environment": Environment(device="cpu"),
        "scores": scores,
    }
    return Results(**fields | changes)


def test_a_file_reads_back(tmp_path):
    path = tmp_path / "deep" / "results.json"
    results().save(path)
    assert Results.load(path) == results()
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_file_without_what_was_added_later_is_read(tmp_path):
    results().save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    for group in content["scores"]:
        del group["ece"], group["nan"], group["chosen"]
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert Results.load(tmp_path / "b.json") == results()
    header, rows = tables.of(results())["orders"]
    assert [row[header.index("ECE %")] for row in rows] == ["", "", ""]


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
            "not a whole results file: it has no scores",
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
    assert summarise([0.5]).std is None


def draws(accuracies, seed=0, images=10**9):
    """A model's scores in random orders, on so many images that these add nothing to the variance unless given."""
    return [Score("arbitrary", {}, f"{seed} {n}", images, top1, 1, 0, None) for n, top1 in enumerate(accuracies)]


def test_an_interval_is_over_seeds_and_over_the_orders_that_they_share():
    first, second, third = [0.50, 0.54, 0.55], [0.60, 0.62, 0.67], [0.58, 0.65, 0.66]
    means = [fmean(accuracies) for accuracies in (first, second, third)]
    # Student's t for two degrees of freedom, from a printed table.
    alone = estimate([draws(first)])
    assert (alone.mean, alone.models) == (pytest.approx(means[0]), 1)
    assert alone.ci95 == pytest.approx(4.303 * stdev(first) / 3**0.5, rel=1e-3)
    own_orders = estimate([draws(first, 0), draws(second, 1), draws(third, 2)])
    assert (own_orders.mean, own_orders.models) == (pytest.approx(fmean(means)), 3)
    assert own_orders.ci95 == pytest.approx(4.303 * stdev(means) / 3**0.5, rel=1e-3)
    variance, freedom = estimate([draws(first), draws(second), draws(third)]).variance
    of_orders = stdev([fmean(column) for column in zip(first, second, third)]) ** 2 / 3
    of_seeds = stdev(means) ** 2 / 3
    assert variance == pytest.approx(of_orders + of_seeds, rel=1e-4)
    assert freedom == pytest.approx(variance**2 / (of_orders**2 / 2 + of_seeds**2 / 2), rel=1e-4)


def test_an_interval_is_over_images_and_never_empty():
    half_right = estimate([draws([0.5], images=1000)])
    assert half_right.ci95 == pytest.approx(1.96 * (0.25 / 1004) ** 0.5, rel=1e-3)
    assert 0.002 < estimate([draws([1.0], images=1000)]).ci95 < 0.004  # the rule of three says 3 in 1,000
    assert estimate([]) is None
    assert estimate([draws([0.5])], lambda score: score.position_accuracy) is None


def test_one_model_in_a_new_order_for_every_batch_has_no_interval():
    found = results().of("arbitrary", reading="per batch")
    assert estimate([found]).ci95 is None
    assert estimate([found, [score("arbitrary", 0.8, reading="per batch")]]).ci95 > 0.1


@pytest.mark.parametrize(("seeds", "shared"), [(1, False), (3, False), (3, True)])
def test_the_interval_covers_the_truth_in_about_95_of_100_experiments(seeds, shared):
    """An image is classified rightly if the sum of its ease and the effects of seed, order and chance is positive."""
    base, of_images, of_chance, images = 1.5, 2, 0.5, 1000
    random = np.random.default_rng(0)
    settings = list(itertools.product([5, 10, 20], [(0.3, 0.3), (0.1, 0.5)], range(100)))
    covered = 0
    for count, (of_seeds, of_orders), _ in settings:
        of_seed = of_seeds * random.standard_normal((seeds, 1))
        of_order = of_orders * random.standard_normal((1 if shared else seeds, count))
        effects = base + of_images * random.standard_normal(images) + (of_seed + of_order)[..., None]
        right = effects + of_chance * random.standard_normal((seeds, count, images), dtype=np.float32) > 0
        found = estimate(draws(row, 0 if shared else seed, images) for seed, row in enumerate(right.mean(axis=2)))
        # One model's interval is for the accuracy of that model.
        centre, of_seeds = (base + of_seed.item(), 0) if seeds == 1 else (base, of_seeds)
        truth = NormalDist(-centre, math.hypot(of_seeds, of_orders, of_images, of_chance)).cdf(0)
        covered += abs(found.mean - truth) <= found.ci95
    assert 0.93 <= covered / len(settings) <= 0.985


def test_tables():
    header, rows = tables.full_depth(results())
    assert header == ["order", "n", "top-1 %", "std", "min", "max", "top-5", "loss", "ECE %"]
    of_fixed = estimate([results().of("arbitrary", reading="fixed")])
    assert rows[0][:2] + rows[0][3:6] == ["sequential", "1", "", "90.00", "90.00"]
    assert rows[1][:3] == ["arbitrary, per batch", "1", "75.00"]
    shown = f"75.00 ± {100 * of_fixed.ci95:.2f}"
    assert rows[2][:6] == ["arbitrary, fixed", "2", shown, "7.07", "70.00", "80.00"]
    assert len(rows) == 3
    header, rows = tables.grid(results(), PROTOCOLS["pruned"])
    assert header == ["layers kept", "1", "2"]
    assert rows[0][1] == tables.percent(
        estimate([results().of("pruned", kept=1, strategy="first", sequence="original")])
    )
    assert [row[0] for row in rows] == ["first", "first, shuffled", "random", "random, shuffled"]


def test_the_comparison_names_what_is_missing():
    partly = results("baseline", scores=[score("sequential", 0.95, "0 1 2")])
    (header, rows), caption = comparison([partly, results()])
    assert header == ["top-1 %", "baseline", "layershuffle"]
    sequential = [tables.percent(estimate([found.of("sequential")])) for found in (partly, results())]
    assert rows[0] == ["sequential", *sequential]
    assert rows[1] == ["arbitrary, per batch", "missing", "75.00"]
    assert "nothing of other training seeds" in caption
    text = tables.markdown(header, rows)
    assert text.splitlines()[:3] == [
        "| top-1 % | baseline | layershuffle |",
        "| --- | ---: | ---: |",
        f"| sequential | {sequential[0]} | {sequential[1]} |",
    ]


def test_the_caption_says_which_methods_have_one_seed():
    seeds = [results(model=replace(results().model, seed=seed)) for seed in (0, 1)]
    assert comparison(seeds)[1] == tables.SEVERAL_SEEDS
    assert comparison(seeds[:1])[1] == tables.ONE_SEED
    assert "Of baseline there is only one seed" in comparison([*seeds, results("baseline")])[1]


def test_the_paper_s_four_methods_fit_a_terminal_of_80_columns():
    methods = ["baseline", "layershuffle", "layershuffle-position", "layershuffle-predict"]
    (header, rows), _ = comparison([results(method) for method in methods])
    console = Console(width=80, record=True, file=None)
    with console.capture() as capture:
        console.print(tables.terminal(header, rows, "title"))
    lines = capture.get().splitlines()
    assert sum("shuffled" in line and "keep" in line for line in lines) == 4
    assert all(line.count("±") in (0, 4) for line in lines)
    assert sum("±" in line for line in lines) == 10


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


def by_class(classes=3):
    """10 images of each class but of the second, which has none. The first class is mistaken most often."""
    images = [10, 0, *[10] * (classes - 2)]
    mistakes = [(0, 2, 4), (0, 1, 2), (2, 0, 1)]
    sequential = OrderCounts("sequential", {}, 1, [3, 0, *[9] * (classes - 2)], mistakes)
    fixed = OrderCounts("arbitrary", {"reading": "fixed"}, 2, [10, 0, *[20] * (classes - 2)], [(0, 1, 10)])
    return results(measures=(ByClassCounts(images, [sequential, fixed]),))


def test_accuracy_by_class_and_what_is_confused():
    found = by_class()
    header, rows = tables.of(found)["classes"]
    assert header == ["class", "images", "sequential", "taken for", "arbitrary, fixed", "taken for"]
    # One of the first class was a NaN.
    assert rows == [["0", "10", "30.00", "2 40%", "50.00", "1 50%"], ["2", "10", "90.00", "0 10%", "100.00", ""]]
    named = replace(found, data=replace(found.data, classes=["cat", "dog", "hen"]))
    assert tables.of(named)["classes"][1][0] == ["cat", "10", "30.00", "hen 40%", "50.00", "dog 50%"]
    header, rows = named.measure(ByClassCounts).confusion(named)
    assert header == ["order", "class", "cat", "dog", "hen"]
    assert rows[0] == ["sequential", "cat", "3", "2", "4"]
    assert rows[5] == ["arbitrary, fixed", "hen", "0", "0", "20"]
    many = by_class(101)
    header, rows = many.measure(ByClassCounts).confusion(many)
    assert header == ["order", "class", "taken for", "images"]
    assert rows[0] == ["sequential", "0", "2", "4"]
    assert len(rows) == 4


def test_pictures_of_confusion():
    few = by_class()
    matrix, *_ = few.measure(ByClassCounts).figure(few).axes
    assert matrix.get_images()[0].get_array().tolist() == [[30, 20, 40], [0, 0, 0], [10, 0, 90]]
    many = by_class(MOST_IN_PICTURE + 1)
    (pairs,) = many.measure(ByClassCounts).figure(many).axes
    assert [text.get_text() for text in pairs.get_yticklabels()] == ["0 as 2", "0 as 1", "2 as 0"]
    assert [bar.get_width() for bar in pairs.patches] == [40, 20, 10, 0, 50, 0]


def test_the_sequential_order_alone_has_an_overview_beside_its_confusion(tmp_path):
    found = by_class()
    alone = replace(found, scores=found.of("sequential"))
    assert list(figures.draw(alone, tmp_path / "a.json")) == ["overview", "confusion"]
