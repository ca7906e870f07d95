"""What each kind of measure says: its tables and its picture."""

from dataclasses import replace

import pytest
from example_results import by_class, results, score, with_several_labels

from layershuffle.errors import UserError
from layershuffle.results import MEASURES as KINDS
from layershuffle.results import Results, figures, tables
from layershuffle.results.levels import reference_levels
from layershuffle.results.measures import (
    ByClassCounts,
    ByCorruptionCounts,
    ByLabel,
    Contributions,
    Corruption,
    Cosine,
    Disagreement,
    EarlyExits,
    EnsembleOfOrders,
    Exit,
    Grouping,
    LabelScores,
    LinearProbe,
    OrderCounts,
    OrdersOnCorruptions,
    ProbeScore,
    Pruning,
    Representations,
    Search,
    SearchStep,
    SecondsPerImage,
)
from layershuffle.results.measures.by_class import MAX_IN_PICTURE, MAX_IN_TABLE


def test_accuracy_by_class_and_what_is_confused():
    found = by_class()
    counts = found.measure(ByClassCounts)
    header, rows = tables.of(found)["classes"]
    assert header[:4] == ["class", "images", "sequential", "sequential: taken for"]
    assert header[4:] == ["arbitrary, fixed", "arbitrary, fixed: taken for"]
    # Class 1 has no images. In sequential order one image of class 0 is neither right nor a mistake: it was a NaN.
    assert rows == [["0", "10", "30.00", "2 40%", "50.00", "1 50%"], ["2", "10", "90.00", "0 10%", "100.00", ""]]
    of_one_order = ByClassCounts(counts.images, counts.orders[:1])
    assert of_one_order.accuracies(found).header == ["class", "images", "sequential", "most often taken for"]

    named = replace(found, data=replace(found.data, classes=["cat", "dog", "hen"]))
    _, rows = tables.of(named)["classes"]
    assert rows[0] == ["cat", "10", "30.00", "hen 40%", "50.00", "dog 50%"]
    header, rows = counts.confusion(named)
    assert header == ["order", "class", "cat", "dog", "hen"]
    assert rows[0] == ["sequential", "cat", "3", "2", "4"]
    assert rows[5] == ["arbitrary, fixed", "hen", "0", "0", "20"]

    # With more classes than a table has columns for, the mistakes are listed: three in sequence, one in fixed orders.
    many = by_class(MAX_IN_TABLE + 1)
    header, rows = many.measure(ByClassCounts).confusion(many)
    assert header == ["order", "class", "taken for", "images"]
    assert rows[0] == ["sequential", "0", "2", "4"]
    assert len(rows) == 4


def test_skewed_classes_have_their_share_and_means_over_classes():
    # Of two classes with 8 and 2 images, all are taken for the first. Its F1 is 8 / 9, and that of the second is 0.
    counts = OrderCounts("sequential", {}, 1, right=[8, 0], confused=[(1, 0, 2)], balanced_accuracy=0.5, macro_f1=4 / 9)
    found = results(measures=(ByClassCounts([8, 2], [counts]),))
    found = replace(found, model=replace(found.model, config={"name": "vit", "num_classes": 2}))
    assert reference_levels(found) == {"chance": 50, "most frequent class": 80}
    assert tables.of(found)["balanced"].rows == [["sequential", "80.00", "50.00", "44.44"]]
    assert "80.00%" in tables.to_compare_with(found)

    # Files of older versions have no such means, and evenly spread classes need none.
    older = replace(counts, balanced_accuracy=None, macro_f1=None)
    assert "balanced" not in tables.of(replace(found, measures=(ByClassCounts([8, 2], [older]),)))
    even = replace(found, measures=(ByClassCounts([5, 5], [replace(counts, right=[5, 0])]),))
    assert "balanced" not in tables.of(even)
    assert list(reference_levels(even)) == ["chance"]


def test_pictures_of_confusion():
    few = by_class()
    matrix, *_ = few.measure(ByClassCounts).figure(few).axes
    in_percent = matrix.get_images()[0].get_array()
    assert in_percent.tolist() == [[30, 20, 40], [0, 0, 0], [10, 0, 90]]

    # With more classes, there are bars for the mistakes: three in sequential order, then three in fixed ones.
    many = by_class(MAX_IN_PICTURE + 1)
    (pairs,) = many.measure(ByClassCounts).figure(many).axes
    assert [text.get_text() for text in pairs.get_yticklabels()] == ["0 as 2", "0 as 1", "2 as 0"]
    assert [bar.get_width() for bar in pairs.patches] == [4, 2, 1, 0, 5, 0]
    # Images and not percent: of a class of two, one image is half.
    assert [text.get_text() for text in pairs.texts] == ["4 of 10", "2 of 10", "1 of 10", "5 of 10"]
    assert pairs.get_ylim() == (2.5, -0.5)

    # A caption speaks of rows where there are some.
    assert "(row)" in few.measure(ByClassCounts).caption_for(few)
    assert "row" not in many.measure(ByClassCounts).caption_for(many)


def test_bars_have_the_mistakes_of_every_kind_of_order_and_then_those_of_small_classes_first():
    # Enough classes for bars. Of the three that have mistakes, class 1 has one image and the others have two.
    images = [2, 1, 2, *[1] * MAX_IN_PICTURE]
    orders = [
        OrderCounts("sequential", {}, 1, right=images, confused=[(0, 3, 1), (1, 3, 1)]),
        OrderCounts("arbitrary", {"reading": "fixed"}, 2, right=images, confused=[(2, 3, 3)]),
    ]
    measure = ByClassCounts(images, orders)
    (axis,) = measure.figure(results(measures=(measure,))).axes
    assert [text.get_text() for text in axis.get_yticklabels()] == ["1 as 3", "0 as 3", "2 as 3"]
    # Three mistakes in two orders are 1.5 in the mean.
    assert [text.get_text() for text in axis.texts] == ["1 of 1", "1 of 2", "1.5 of 2"]


def test_the_picture_of_groups_has_accuracy_and_time_by_steps():
    grouping = Grouping({"0 1": 1.0, "(0+1)": 0.9}, "(0+1)")
    scores = [score("grouping", 0.5, "0 1", steps=2), score("grouping", 0.4, "(0+1)", steps=1)]
    study = results(measures=(grouping,), scores=scores)
    accuracy, time = grouping.figure(study).axes
    for axis, in_two_steps, in_one_step in ((accuracy, 50, 40), (time, 1.0, 0.9)):
        line, ring = axis.lines[:2]
        assert line.get_xydata().tolist() == [[2, in_two_steps], [1, in_one_step]]
        assert ring.get_xydata().tolist() == [[1, in_one_step]]  # around the order that was chosen
    description, table = grouping.data(study)
    assert description
    assert [row[2] for row in table.rows] == ["1.00", "0.900"]


ENSEMBLE = EnsembleOfOrders(
    protocol="arbitrary",
    variant={"reading": "fixed"},
    samples=2,
    top1=0.9,
    loss=None,
    ece=0.05,
    agreement=0.954,
    disagreement=0.0123,
    auroc_of_probability=0.876,
    auroc_of_disagreement=0.7,
    accuracy_of_surest=0.975,
)

# One of every kind.
MEASURES = [
    ByClassCounts([2, 3], [OrderCounts("sequential", {}, 1, [1, 3], [(0, 1, 1)])]),
    ByCorruptionCounts([Corruption("fog", 1, 4)], [OrdersOnCorruptions("sequential", {}, 1, [3])]),
    ByLabel([4, 0], [0.5, 0.3], [LabelScores("sequential", {}, 1, [0.75, None], [0.5, None])]),
    Contributions(["0 1", "1 0"], "class token", added=[[1.0, 2.0], [3.0, 4.0]], before=[[5.0, 6.0], [7.0, 8.0]]),
    Cosine([[1.0, 0.5], [0.5, 1.0]]),
    Disagreement([ENSEMBLE]),
    EarlyExits([Exit("confidence", 0.5, 1.5, 0.7, 0.9, None)]),
    Grouping({"0 1": 1.0, "(0+1)": 0.9}, "(0+1)"),
    LinearProbe([30, 10, 20], 20, ProbeScore(0.5, 0.6), 0.01, ProbeScore(0.7, 0.8)),
    Pruning(9, {1: 0.5, 2: 1.0}, "1 0"),
    Representations(["0 1", "1 0"], 1, [1, 0], [(0.5, 1.5), (2.5, 3.5)]),
    Search("greedy", 9, trace=[SearchStep("0", 2.0), SearchStep("0 1", None)]),
    SecondsPerImage({1: 0.001, 2: 0.002}),
]


def with_measure(measure):
    """Results with this measure, and with the scores that any kind of measure is shown beside."""
    scores = [
        score("sequential", 0.9, "0 1"),
        score("pruned", 0.5, "0", kept=1, strategy="first", sequence="original"),
        score("prune", 0.5, "0", kept=1),
        score("grouping", 0.4, "(0+1)", steps=1),
    ]
    return results(measures=(measure,), scores=scores)


def test_every_kind_of_measure_is_tried_here():
    assert {type(measure) for measure in MEASURES} == set(KINDS.values())


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_measure_reads_back_and_has_its_picture(tmp_path, measure):
    study = with_measure(measure)
    study.save(tmp_path / "study.json")
    read = Results.load(tmp_path / "study.json")
    assert read.measures == study.measures
    if measure.picture:
        assert measure.picture in figures.draw(read, tmp_path / "study.json")
        description, table = measure.data(read)
        assert description
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.header)}
    for table in (tables.of(read) | measure.files(read)).values():
        assert {len(row) for row in table.rows} == {len(table.header)}


@pytest.mark.parametrize(
    "measure",
    [
        ByClassCounts([], []),
        ByClassCounts([2, 3], [OrderCounts("sequential", {}, 1, [1], [])]),
        ByClassCounts([2, 3], [OrderCounts("sequential", {}, 0, [1, 3], [])]),
        ByClassCounts([2, 3], [OrderCounts("sequential", {}, 1, [3, 3], [])]),
        ByClassCounts([2, 3], [OrderCounts("sequential", {}, 1, [1, 3], [(0, 2, 1)])]),
        ByClassCounts([2, 3], [OrderCounts("sequential", {}, 1, [1, 3], [(0, 1, 3)])]),
        Contributions(["0 1"], added=[[1.0]]),
        Contributions(["0 1", "1 0"], added=[[1.0, 2.0]]),
        Contributions(["0 1"], added=[[1.0, 2.0]], before=[[1.0]]),
        ByCorruptionCounts([Corruption("fog", 1, 4)], [OrdersOnCorruptions("sequential", {}, 1, [5])]),
        ByCorruptionCounts([Corruption("fog", 1, 4)], [OrdersOnCorruptions("sequential", {}, 1, [3, 1])]),
        ByCorruptionCounts([], []),
        ByLabel([4, 0], [0.5, 0.3], [LabelScores("sequential", {}, 1, [0.75], [0.5, None])]),
        ByLabel([4, 0], [0.5, 0.3], [LabelScores("sequential", {}, 1, [1.75, None], [0.5, None])]),
        ByLabel([4], [0.5, 0.3], []),
        Cosine([[1.0, 0.5]]),
        Cosine([[1.5]]),
        Disagreement([replace(ENSEMBLE, samples=1)]),
        Disagreement([replace(ENSEMBLE, agreement=1.1)]),
        Disagreement([replace(ENSEMBLE, auroc_of_disagreement=-0.1)]),
        Disagreement([replace(ENSEMBLE, disagreement=-1.0)]),
        EarlyExits([Exit("confidence", 0.5, 1.5, 1.7, 0.9, None)]),
        LinearProbe([30, 10], 20, ProbeScore(0.5, 0.6), 0.01, ProbeScore(0.7, 0.8)),
        LinearProbe([30, 10, 20], 20, ProbeScore(0.5, 0.6), 0.01, ProbeScore(0.7, 1.8)),
        Pruning(9, {2: 1.0}, "1 0"),
        Representations(["0 1"], 1, [2], [(0.5, 1.5)]),
        Representations(["0 1"], 1, [0, 1], [(0.5, 1.5)]),
        Search("greedy", 9),
        SecondsPerImage({2: 0.002}),
    ],
    ids=lambda measure: measure.name,
)
def test_a_measure_that_cannot_be_is_refused(tmp_path, measure):
    with_measure(measure).save(tmp_path / "study.json")
    with pytest.raises(UserError, match=r"study\.json is not a whole results file"):
        Results.load(tmp_path / "study.json")


def test_what_orders_say_together():
    found = results(measures=(Disagreement([ENSEMBLE]),))
    header, (row,) = tables.of(found)["together"]
    assert dict(zip(header, row, strict=True)) | {"top-1 %": "90.00"} == {
        "orders": "arbitrary, fixed",
        "n": "2",
        "top-1 %": "90.00",
        "ECE %": "5.00",
        "agree %": "95.4",
        "nats": "0.012",
        "AUROC %": "87.6",
        "surest 80%": "97.50",
    }

    # Without mistakes that they could tell from the rest, there is no AUROC.
    without_mistakes = replace(ENSEMBLE, auroc_of_probability=None, auroc_of_disagreement=None)
    header, (row,) = tables.of(replace(found, measures=(Disagreement([without_mistakes]),)))["together"]
    assert row[header.index("AUROC %")] == ""


def test_the_data_of_the_picture_of_depths_has_each_score_once():
    exits = EarlyExits([Exit("confidence", 0.5, 1.5, 0.7, 0.9, None)])
    depths = SecondsPerImage({1: 0.001, 2: 0.002})
    study = replace(with_measure(exits), measures=(depths, exits))
    _, table = depths.data(study)
    of_exits = [row for row in table.rows if row[0] == "early exit"]
    assert of_exits == [["early exit", "probability above 0.5, 1.50 layers", "", "70.00"]]
    assert len(table.rows) == len(study.scores) + len(exits.exits)
    # The table that is printed compares it with stopping all images together.
    assert [row[0] for row in exits.table(study).rows] == ["all after 1", "probability above 0.5"]


@pytest.mark.parametrize(
    "measure",
    [
        Grouping({"0 1": 1.0, "(0+1)": 0.9}, "(0+1)"),
        Pruning(9, {1: 0.5, 2: 1.0}, "1 0"),
        SecondsPerImage({1: 0.001, 2: 0.002}),
    ],
    ids=lambda measure: measure.name,
)
def test_with_several_labels_a_measure_shows_average_precision(measure):
    study = with_several_labels(with_measure(measure))
    description, table = measure.data(study)
    texts = [description, *table.header]
    for printed in measure.tables(study).values():
        texts += printed.header
    labels_of_axes = [axis.get_ylabel() for axis in measure.figure(study).axes]
    assert "top-1" not in str(texts + labels_of_axes)
    assert "mAP" in description
    assert labels_of_axes[0] == "mean average precision, %"
