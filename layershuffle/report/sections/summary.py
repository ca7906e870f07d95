"""The summary: the accuracy of every method in sequential and in arbitrary order, as bars."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from layershuffle.plurals import counted
from layershuffle.report import curves
from layershuffle.report.curves import Bar
from layershuffle.report.page import Picture, Section, Table
from layershuffle.report.sections.wording import meaning, picture
from layershuffle.report.setups import SetupResults
from layershuffle.results import Estimate, estimate, tables


def summary(setups: Sequence[SetupResults]) -> Section:
    """What was compared, in a sentence, and the bars of each setup."""
    text: list[str] = []
    parts: list[Table | Picture] = []
    for setup in setups:
        text.append(_about(setup))
        bars = accuracies(setup)
        if bars:
            caption = f"{setup.quality_in_words}; lines are 95% intervals."
            draw = partial(curves.bars, bars, setup.levels, setup.quality_in_words)
            parts.append(picture("orders", setup, caption, draw, _data(bars, setup)))
    # Said once here, because it holds for all tables of the page.
    interval = meaning(setups)
    if interval:
        text.append(interval)
    return Section("Summary", text, parts)


def accuracies(setup: SetupResults) -> list[Bar]:
    """The accuracy of each method in sequential and in arbitrary order.

    Arbitrary order is the mean of orders that each ran over all images, if all methods have such, since one model tells
    the interval of these; otherwise it is a new order in every batch.
    """
    arbitrary = _estimates(setup, "arbitrary", reading="fixed")
    per_batch = _estimates(setup, "arbitrary", reading="per batch")
    # One bar must not compare fixed orders of some methods with new ones of others.
    if len(per_batch) > len(arbitrary):
        arbitrary = per_batch
    by_order = {"sequential order": _estimates(setup, "sequential"), "arbitrary order": arbitrary}
    bars = []
    for order, estimates in by_order.items():
        for method, accuracy in estimates.items():
            bars.append(Bar(order, method, accuracy))
    return bars


def _estimates(setup: SetupResults, protocol: str, **variant: Any) -> dict[str, Estimate]:
    """The accuracy of each method that has scores of this protocol whose variants have these values."""
    estimates = {}
    for method in setup.main_methods:
        accuracy = estimate(setup.scores_by_seed(method, protocol, **variant))
        if accuracy is not None:
            estimates[method] = accuracy
    return estimates


def _data(bars: Sequence[Bar], setup: SetupResults) -> Table:
    """The bars in numbers, and the levels that are drawn as lines."""
    data = Table(f"{setup.quality} in percent", ["order", "method", "mean", "95% interval, half", "seeds"], [])
    for bar in bars:
        mean = f"{100 * bar.accuracy.mean:.2f}"
        half = tables.half_interval(bar.accuracy)
        seeds = str(bar.accuracy.models)
        data.rows.append([bar.order, bar.method, mean, half, seeds])
    for level, value in setup.levels.items():
        data.rows.append(["", level, f"{value:.2f}", "", ""])
    return data


def _about(setup: SetupResults) -> str:
    """The backbone, the data, and how many images, classes, methods and seeds there are."""
    first = next(iter(setup.files.values()))
    images = counted(first.data.images, "test image")
    classes = counted(first.model.num_classes, "class")
    text = f"{setup.backbone} on {setup.data}: {images} in {classes}"
    if setup.methods:
        methods = "1 method" if len(setup.methods) == 1 else f"{len(setup.methods)} methods each"
        seeds = [len(setup.runs_of(method)) for method in setup.methods]
        # Methods may have different numbers of seeds, such as "3 to 5".
        fewest = min(seeds)
        most = max(seeds)
        counts = counted(most, "seed")
        if fewest != most:
            counts = f"{fewest} to {counts}"
        text += f", {methods} with {counts}"
    return f"{text}."
