"""Finds an order on one part of the images and scores it on the other."""

import logging
import math
from collections.abc import Sequence
from typing import Unpack

from torch.utils.data import DataLoader

from layershuffle.api.arguments import check_at_least, check_choice
from layershuffle.api.data import DataLike
from layershuffle.api.study import ModelLike, Study, start_study
from layershuffle.api.study_options import StudyOptions
from layershuffle.choices import Split, Strategy
from layershuffle.errors import UserError
from layershuffle.evaluation.search import Losses, climb, greedy, heavy_tail_exponents, well_trained_first
from layershuffle.orders.named import parse_order
from layershuffle.orders.order import Order, OrderLike
from layershuffle.orders.protocols import Trial
from layershuffle.plurals import counted
from layershuffle.progress_lines import LineClock
from layershuffle.results import EvaluationInfo, Results
from layershuffle.results.measures import Search, SearchStep

logger = logging.getLogger(__name__)

FEWEST_PER_CLASS = 10
"""With fewer images per class, the search warns that chance decides."""


def search(
    model: ModelLike,
    data: DataLike = None,
    *,
    strategy: Strategy = "greedy",
    start: OrderLike | None = None,
    rounds: int = 20,
    fraction: float = 0.5,
    split: Split = "val",
    **options: Unpack[StudyOptions],
) -> Results:
    """Find an order on one part of the images and score it on the other.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        data: a data set, or the name of its config, such as "glyphs"; by default the one the model was trained on.
        strategy: "greedy" appends the best next layer, "climb" exchanges two layers while that helps, and
            "well-trained" ranks the layers by the spectra of their weights (arXiv 2302.02123).
        start: the order that "climb" begins with; by default the model's own.
        rounds: the most exchanges that "climb" makes.
        fraction: the share of the images that the search uses; the others score its result.
        split: which images of the data set to use.
        options: ``seed``, ``accelerator``, ``precision``, ``compile`` and ``batch_size``, see ``StudyOptions``.

    Returns:
        The scores of the base order and of what the search found, and the measure ``Search``.

    Raises:
        UserError: if there is no such model or data set, or there are too few images.
    """
    check_choice("strategy", strategy, Strategy)
    check_at_least(0, rounds=rounds)
    if start is not None and strategy != "climb":
        raise UserError(f"start is where climb begins; {strategy} has no use for it")
    study = start_study(model, data, split=split, **options)
    base_order = study.model.order
    first_order = _order_of(start, study)

    # What was found is scored on other images: the best of many orders does better by chance on those that chose it.
    searched, reported = study.data.parts(split, fraction, study.seed)
    images = len(searched.dataset)  # type: ignore[arg-type]
    warn_of_few_images(images, study.data.num_classes, split)
    losses = losses_on(study, searched, f"{strategy} search,")

    # What the search finds, by the name under which its score is shown.
    orders: dict[str, Order]
    if strategy == "well-trained":
        exponents = heavy_tail_exponents(study.model)
        orders = {strategy: well_trained_first(exponents, base_order)}
        measure = Search(strategy, images, exponents=[round(exponent, 4) for exponent in exponents])
    elif strategy == "greedy":
        trace = list(greedy(base_order, losses))
        best, _ = min(trace, key=lambda step: step[1])
        # The last step has all layers. Fewer may do better, so that the best length is scored as well.
        all_layers, _ = trace[-1]
        orders = {strategy: all_layers, "greedy, best length": best}
        measure = Search(strategy, images, trace=_steps(trace))
    else:
        trace = list(climb(first_order, losses, rounds))
        best, _ = trace[-1]
        orders = {strategy: best}
        if start is not None:
            orders["start"] = first_order
        measure = Search(strategy, images, trace=_steps(trace))

    to_score = [Trial("sequential", base_order)]
    for name, order in orders.items():
        to_score.append(Trial("search", order, {"strategy": name}))
    scores = study.score(to_score, reported)

    used = {"strategy": strategy, "start": start, "rounds": rounds, "fraction": fraction}
    # The record has text. A start that was given as text is kept as it was written.
    if start is not None and not isinstance(start, str):
        used["start"] = str(first_order)
    return study.results(scores, EvaluationInfo(options=used), [measure])


def _order_of(start: OrderLike | None, study: Study) -> Order:
    """The order that a search begins with; raises UserError if the model can't run it."""
    base_order = study.model.order
    if start is None:
        return base_order
    # A text may be the name of an order, such as "backwards", which rearranges the steps of the base order.
    if isinstance(start, str):
        start = parse_order(start, base_order)
    return study.model.check(start)


def losses_on(study: Study, images: DataLoader, doing: str) -> Losses:
    """The function that gives the losses of orders on these images.

    Its progress bar says ``doing``, and how many steps the orders have, from which one sees how far a search is.
    """
    # A search calls the function many times. If each call had a clock of its own, short ones would end before their
    # first line is due, and a log would show nothing.
    clock = LineClock()

    def losses(orders: Sequence[Order]) -> list[float]:
        doing_now = f"{doing} {counted(len(orders[0]), 'step')} of"
        scores = study.score([Trial("search", order) for order in orders], images, doing_now, clock=clock)
        # A loss that isn't a number is the worst there is, and never a minimum.
        return [math.inf if score.loss is None else score.loss for score in scores]

    return losses


def warn_of_few_images(
    images: int, classes: int, split: str, chosen: str = "orders are", options: tuple[str, ...] = ("--fraction",)
) -> None:
    """Warn if something is chosen by so few images that the choice is mostly chance.

    Args:
        images: how many choose.
        classes: how many classes there are.
        split: which images they are.
        chosen: what they choose, and its verb.
        options: the command's own options that make them more.
    """
    if images < FEWEST_PER_CLASS * classes:
        if split == "val":
            options = (*options, "--data.val_fraction")
        logger.warning(
            "%s chosen by %d images of %d classes, fewer than %d per class: the choice is partly chance; use more %s "
            "images, such as with a larger %s",
            chosen,
            images,
            classes,
            FEWEST_PER_CLASS,
            split,
            " or ".join(options),
        )


def _steps(trace: Sequence[tuple[Order, float]]) -> list[SearchStep]:
    """The steps of a search as results files have them: JSON knows no infinite loss."""
    steps = []
    for order, loss in trace:
        finite_loss = loss if math.isfinite(loss) else None
        steps.append(SearchStep(str(order), finite_loss))
    return steps
