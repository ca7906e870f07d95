"""What a model card says of the model's scores."""

from dataclasses import replace

from example_results import results, score

from layershuffle import Order
from layershuffle.checkpoints.model_card import scores_of
from layershuffle.results import tables
from layershuffle.results.measures import ByClassCounts, OrderCounts


def skewed():
    """Results of 50 images in two classes, of which one has 40."""
    counts = [
        OrderCounts("sequential", {}, 1, [40, 0], [(1, 0, 10)], balanced_accuracy=0.5, macro_f1=0.4444),
        OrderCounts("arbitrary", {"reading": "fixed"}, 2, [60, 10], [], balanced_accuracy=0.625, macro_f1=0.6),
    ]
    found = results(measures=(ByClassCounts([40, 10], counts),))
    return replace(found, model=replace(found.model, config={"name": "vit", "num_classes": 2}))


def test_skewed_classes_have_means_over_classes():
    found = skewed()
    text = scores_of(found.model, [found], None)
    assert "| sequential | 80.00 | 50.00 | 44.44 |" in text
    assert "| arbitrary, fixed | 70.00 | 62.50 | 60.00 |" in text
    # A single order has those that were counted for it alone.
    in_sequence = scores_of(found.model, [found], Order("0 1 2"))
    assert "| given, 0 1 2 | 80.00 | 50.00 | 44.44 |" in in_sequence
    assert "arbitrary" not in in_sequence
    assert "balanced" not in scores_of(found.model, [found], Order("1 0 2"))


def test_an_interval_that_tells_nothing_is_explained():
    wide = [score("arbitrary", 0.1, "1 0", reading="fixed"), score("arbitrary", 0.7, "0 1", reading="fixed")]
    found = results(scores=wide)
    assert "40.00 ± n/a" in scores_of(found.model, [found], None)
    assert tables.TOO_WIDE in scores_of(found.model, [found], None)
    assert tables.TOO_WIDE not in scores_of(found.model, [results()], Order("0 1 2"))
