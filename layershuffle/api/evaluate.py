"""Scores one model under many orders."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from layershuffle.api.arguments import check_at_least
from layershuffle.api.data import DataLike
from layershuffle.api.study import ModelLike, Study, start_study
from layershuffle.api.study_options import BatchSize
from layershuffle.choices import Classifier, Precision, Split
from layershuffle.data.conditions import ConditionBatches
from layershuffle.errors import UserError
from layershuffle.evaluation.by_class import ByClass
from layershuffle.evaluation.by_corruption import ByCorruption
from layershuffle.evaluation.by_label import LabelsOfOrders
from layershuffle.evaluation.disagreement import OrdersTogether
from layershuffle.evaluation.neighbours import NEIGHBOURS
from layershuffle.models.model import Output
from layershuffle.orders.named import parse_order
from layershuffle.orders.order import Order, OrderLike
from layershuffle.orders.protocols import PROTOCOLS, Trial, find, trials
from layershuffle.results import EvaluationInfo, Measure, Results, Score

DEFAULT_PROTOCOLS = ("sequential", "arbitrary", "pruned")
KEYS_IN_FILES = {"depths": "keep", "recorded_orders": "log"}
"""The keys that results files have for options whose names are newer than the files' format."""


# Other studies take ``**options: Unpack[StudyOptions]``. Here further keywords are options of protocols, so those of
# StudyOptions stand by name.
def evaluate(
    model: ModelLike,
    data: DataLike = None,
    *,
    protocols: str | Sequence[str] | None = None,
    orders: str | Order | Sequence[OrderLike] = (),
    random_orders: int = 10,
    classifier: Classifier = "own",
    neighbours: int = NEIGHBOURS,
    split: Split = "test",
    seed: int = 0,
    accelerator: str = "auto",
    precision: Precision = "32-true",
    compile: bool = False,
    batch_size: BatchSize = None,
    **protocol_options: Any,
) -> Results:
    """Score a model in sequential, arbitrary, pruned and other orders.

    Args:
        model: its name, its checkpoint, or what ``layershuffle.load`` or ``layershuffle.train`` returned.
        data: a data set, or the name of its config, such as "glyphs"; by default the one the model was trained on.
        protocols: families of orders, which ``layershuffle list protocols`` shows, or the import path of a protocol of
            your own. By default "sequential", "arbitrary" and "pruned", or with ``orders``, "sequential" alone.
        orders: a further order or several, each as text such as "3 1 2" or "sandwich(3)", or as layers such as
            [[3, 1, 2], [2, 1, 3]].
        random_orders: how many random orders to sample where a protocol has random ones.
        classifier: "own" for the model's own classifier, or "neighbours" for a vote of the training images with the
            nearest features, as in DINO (arXiv 2104.14294, appendix F.1). It judges a backbone without training a
            classifier: timm's weights need none. The features of the training images are those of the base order.
        neighbours: how many training images vote.
        split: which images of the data set to use.
        seed: decides everything random.
        accelerator: Lightning's name of the device to run on.
        precision: of the forward pass; "auto" measures which one is faster.
        compile: whether to compile the layers, which takes about a minute.
        batch_size: images per batch; "auto" takes the most that fit the GPU's memory.
        protocol_options: options of the protocols by name, such as ``depths=[3, 6]`` of "pruned".

    Returns:
        The score of each order, for the most important orders the counts by class, and how far the random ones
        disagree.

    Raises:
        UserError: if there is no such model, data set or protocol, the model can't run an order, or
            ``random_orders`` is below 1.
    """
    check_at_least(1, random_orders=random_orders)
    study = start_study(
        model,
        data,
        split=split,
        classifier=classifier,
        neighbours=neighbours,
        seed=seed,
        accelerator=accelerator,
        precision=precision,
        compile=compile,
        batch_size=batch_size,
        is_shared=True,
        # Neighbours vote for one label.
        takes_several_labels=classifier == "own",
    )

    # One protocol or order may be given without a list around it.
    if isinstance(protocols, str):
        protocols = [protocols]
    if isinstance(orders, (str, Order)):
        orders = [orders]

    # The orders to score.
    parsed_orders = _parse_orders(orders, study.model.order)
    names = _protocol_names(protocols, parsed_orders)
    options = _all_options(names, protocol_options)
    choices: Sequence[Order] = ()
    if study.model.choice is not None:
        choices = study.model.choice.orders
    to_score = trials(names, study.model.order, random_orders, seed, parsed_orders, choices, **_arguments(options))

    scores, measures = _score(study, to_score)
    recorded = {KEYS_IN_FILES.get(name, name): value for name, value in options.items()}
    used = EvaluationInfo(protocols=names, random_orders=random_orders, options=recorded)
    return study.results(scores, used, measures)


def _score(study: Study, to_score: Sequence[Trial]) -> tuple[list[Score], list[Measure]]:
    """The scores, and what is measured in the same forward passes. Not every protocol has that, see ``Protocol``."""
    if study.data.has_several_labels:
        return _score_labels(study, to_score)
    by_class = ByClass(to_score, study.data.num_classes).to(study.fabric.device)
    together = OrdersTogether(to_score, study.fabric.device)
    batches = None
    by_corruption = None
    if study.data.conditions is not None:
        batches = ConditionBatches(study.batches, study.data.conditions)
        by_corruption = ByCorruption(to_score, batches).to(study.fabric.device)

    def on_output(order: Order, output: Output, labels: Tensor) -> None:
        by_class.add(order, output, labels)
        together.add(order, output, labels)
        if by_corruption is not None:
            by_corruption.update(order, output, labels)

    scores = study.score(to_score, batches, on_output=on_output)
    measures: list[Measure] = []
    if by_corruption is not None and by_corruption.groups:
        measures.append(by_corruption.counts())
    if together.groups:
        measures.append(together.disagreement())
    if by_class.groups:
        measures.append(by_class.counts())
    return scores, measures


def _score_labels(study: Study, to_score: Sequence[Trial]) -> tuple[list[Score], list[Measure]]:
    """The same of images that can have several labels: what is measured is how well each of them is found."""
    # ``with_classifier_for`` has refused a model without thresholds, because the images can have several labels.
    thresholds = study.loaded.info.thresholds
    assert thresholds is not None
    labels = LabelsOfOrders(to_score, thresholds).to(study.fabric.device)
    scores = study.score(to_score, on_output=labels.add)
    return scores, [labels.by_label()] if labels.groups else []


def _parse_orders(orders: Sequence[OrderLike], base_order: Order) -> list[Order]:
    """The orders that the caller gives, each with one layer or more, and each once."""
    parsed: list[Order] = []
    for order in orders:
        parsed_order = parse_order(order, base_order) if isinstance(order, str) else Order(order)
        if not parsed_order:
            raise UserError("an order to evaluate needs at least one layer, such as '3 1 2'")
        if parsed_order in parsed:
            raise UserError(f"the order '{parsed_order}' is given more than once")
        parsed.append(parsed_order)
    return parsed


def _protocol_names(protocols: Sequence[str] | None, orders: Sequence[Order]) -> list[str]:
    """The protocols to run, each once; the protocol "given" scores the caller's own orders."""
    if protocols is not None:
        names = list(protocols)
    elif orders:
        names = ["sequential"]
    else:
        names = list(DEFAULT_PROTOCOLS)
    if orders:
        names.append("given")
    return list(dict.fromkeys(names))


def _all_options(names: Sequence[str], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The options of all known protocols with their values, as results files have them.

    Args:
        names: the protocols to run.
        chosen: the caller's values; None stands for the default.

    Raises:
        UserError: if no protocol has such an option, or there is no protocol of one of the names.
    """
    # Finding a protocol of the user's own imports it, which adds it to PROTOCOLS.
    for name in names:
        find(name)
    options: dict[str, Any] = {}
    for protocol in PROTOCOLS.values():
        for option in protocol.options:
            options[option.name] = option.default
    unknown = [name for name in chosen if name not in options]
    if unknown:
        raise UserError(f"no protocol has an option {unknown[0]}: choose from {', '.join(options)}")
    for name, value in chosen.items():
        if value is None:
            continue
        # An option that takes several values may be given a single one, as in ``depths=6``.
        takes_several = isinstance(options[name], tuple)
        is_single = isinstance(value, (int, str))
        options[name] = [value] if takes_several and is_single else value

    # JSON has lists in place of tuples. An empty tuple is a default that depends on the model, and recorded as null.
    for name, value in options.items():
        if isinstance(value, (list, tuple)):
            options[name] = list(value) or None
    return options


def _arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as functions of protocols take them: without those that have no value, and each value once."""
    arguments = {}
    for name, value in options.items():
        if isinstance(value, list):
            arguments[name] = tuple(dict.fromkeys(value))
        elif value is not None:
            arguments[name] = value
    return arguments
