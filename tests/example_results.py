"""Results made by hand, that tests of several rooms share."""

import itertools
from dataclasses import replace

from layershuffle.results import DataInfo, Environment, EvaluationInfo, ModelInfo, Results, Score
from layershuffle.results.measures import ByClassCounts, OrderCounts


def score(protocol, top1, order=None, **variant):
    """The score of one order, or of a new one in every batch if none is given."""
    return Score(protocol, variant, order, images=50, top1=top1, top5=1.0, loss=0.5, position_accuracy=None)


def results(method="layershuffle", **changes):
    """An evaluation by three protocols: sequential, arbitrary and pruned. The changes are fields of ``Results``."""
    scores = [
        score("sequential", 0.9, "0 1 2"),
        score("arbitrary", 0.75, reading="per batch"),
        score("arbitrary", 0.7, "1 0 2", reading="fixed"),
        score("arbitrary", 0.8, "2 1 0", reading="fixed"),
    ]
    for kept, strategy, sequence in itertools.product((1, 2), ("first", "random"), ("original", "random")):
        for draw in range(3):
            top1 = 0.1 * kept + 0.01 * draw
            scores.append(score("pruned", top1, "0", kept=kept, strategy=strategy, sequence=sequence))
    unchanged = Results(
        model=ModelInfo(name="best", method=method, config={"name": "vit_tiny_patch16_224", "num_classes": 10}),
        data=DataInfo(name="Digits", images=50),
        evaluation=EvaluationInfo(seed=0),
        environment=Environment(device="cpu"),
        scores=scores,
    )
    return replace(unchanged, **changes)


def by_class(classes=3):
    """Results that count 10 images of each class but of the second, which has none.

    In sequential order there are mistakes about the first class and the third, in two fixed ones only about the first.
    """
    images = [10, 0, *[10] * (classes - 2)]
    sequential = OrderCounts(
        "sequential",
        {},
        samples=1,
        right=[3, 0, *[9] * (classes - 2)],
        confused=[(0, 2, 4), (0, 1, 2), (2, 0, 1)],
    )
    fixed = OrderCounts(
        "arbitrary",
        {"reading": "fixed"},
        samples=2,
        right=[10, 0, *[20] * (classes - 2)],
        confused=[(0, 1, 10)],
    )
    return results(measures=(ByClassCounts(images, [sequential, fixed]),))


def with_several_labels(found):
    """The same results of images with several labels: what were accuracies are mean average precisions."""
    scores = [replace(one, top1=None, top5=None, map=one.top1, f1=one.top1) for one in found.scores]
    return replace(found, scores=scores)
