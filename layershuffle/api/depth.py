"""Accuracy and time against the number of layers run, the same for all images or each image's own."""

import itertools
from typing import Unpack

from layershuffle.api.arguments import check_at_least
from layershuffle.api.data import DataLike
from layershuffle.api.progress import progress_bar
from layershuffle.api.study import ModelLike, Study, start_study
from layershuffle.api.study_options import StudyOptions
from layershuffle.choices import Classifier, Split
from layershuffle.evaluation.activations import seconds_per_image
from layershuffle.evaluation.early_exit import EarlyExit
from layershuffle.evaluation.neighbours import NEIGHBOURS
from layershuffle.orders.named import first
from layershuffle.orders.protocols import trials
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import SecondsPerImage


def depth(
    model: ModelLike,
    data: DataLike = None,
    *,
    random_orders: int = 10,
    repeats: int = 20,
    classifier: Classifier = "own",
    neighbours: int = NEIGHBOURS,
    split: Split = "test",
    **options: Unpack[StudyOptions],
) -> Results:
    """Accuracy and time per image against the number of layers run.

    Scores the first, evenly spaced and random layers in original sequence, from one layer to all, and measures how long
    each number of layers takes. The logits after the first layers also tell how early exit does, where each image stops
    once the classifier is sure.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        data: a data set, or the name of its config, such as "glyphs"; by default the one the model was trained on.
        random_orders: how many random choices of layers to sample for each number of layers.
        repeats: how often to measure the time of each number of layers; the shortest time counts.
        classifier: what classifies, see ``layershuffle.evaluate``.
        neighbours: how many training images vote.
        split: which images of the data set to use. A threshold for early exit should be chosen on other images than
            those whose accuracy is reported.
        options: ``seed``, ``accelerator``, ``precision``, ``compile`` and ``batch_size``, see ``StudyOptions``.

    Returns:
        Scores, and the measures ``SecondsPerImage`` and ``EarlyExits``.

    Raises:
        UserError: if there is no such model or data set.
    """
    check_at_least(1, random_orders=random_orders, repeats=repeats)
    study = start_study(model, data, split=split, classifier=classifier, neighbours=neighbours, **options)
    base_order = study.model.order
    depths = range(1, len(base_order) + 1)
    pruned = trials(["sequential", "pruned"], base_order, random_orders, study.seed, depths=tuple(depths))
    # The protocol "pruned" also shuffles the layers that it keeps, which is left out: here only their number matters.
    in_sequence = [trial for trial in pruned if trial.variant.get("sequence", "original") == "original"]
    # The outputs of the first layers are computed for the scores anyway, so that early exit costs no pass of its own.
    early_exit = EarlyExit(base_order, study.fabric.device)
    scores = study.score(in_sequence, on_output=early_exit.add)

    # More digits would be noise.
    times = {depth: float(f"{seconds:.4g}") for depth, seconds in seconds_by_depth(study, repeats).items()}
    used = EvaluationInfo(random_orders=random_orders, options={"repeats": repeats})
    return study.results(scores, used, [SecondsPerImage(times), early_exit.compute()])


def seconds_by_depth(study: Study, repeats: int, fewest: int = 1) -> dict[int, float]:
    """The time per image, in seconds, by how many steps of the model's base order run.

    The time depends on how many steps run, and not on which ones. Each number of steps runs once in each of ``repeats``
    rounds, and its shortest time counts. What more steps take is an upper bound of what fewer take, since they do the
    same and more: a time above that is noise, and the bound counts instead. So the times never fall.

    Args:
        study: the model, its images and the device.
        repeats: how many rounds there are.
        fewest: the smallest number of steps to time.
    """
    base_order = study.model.order
    depths = range(fewest, len(base_order) + 1)
    # ``first`` counts steps; ``over`` puts the model's own steps in their place, which may be halves of layers.
    orders = [first(depth, len(base_order)).over(base_order) for depth in depths]
    model = study.model.to(study.fabric.device).eval()
    total = (repeats + 1) * len(orders)  # the first round warms up
    with study.fabric.autocast(), progress_bar(f"timing {study.loaded.info.name}", total, "forward pass") as advance:
        times = seconds_per_image(model, study.first_batch(), orders, repeats, advance)
    # From the longest order down to the shortest, each time is at most that of the next longer one.
    bounded = list(itertools.accumulate(reversed(times), min))
    return dict(zip(depths, reversed(bounded)))
