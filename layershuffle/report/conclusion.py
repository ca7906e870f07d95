"""The report's conclusion: what was compared and what was found, in a sentence each, and the bars that show it."""

from typing import Any

from layershuffle.report.collect import SetupResults
from layershuffle.report.curves import Bar
from layershuffle.results import Estimate, estimate, half_width, tables, total


def about(setup: SetupResults) -> str:
    """The backbone, the data, and how many images, classes, methods and seeds there are."""
    first = next(iter(setup.files.values()))
    images, classes = first.data.images, first.model.num_classes
    text = f"{setup.backbone} on {setup.data}: {_several(images, 'test image')} in {_several(classes, 'class')}"
    if setup.methods:
        seeds = {len(setup.of(method)) for method in setup.methods}
        counts = " to ".join(map(str, sorted({min(seeds), max(seeds)})))
        each = "each " if len(setup.methods) > 1 else ""
        text += f", {_several(len(setup.methods), 'method')} {each}with {counts} seed{'' if counts == '1' else 's'}"
    return f"{text}."


def bars(setup: SetupResults) -> list[Bar]:
    """The accuracy of each method in sequential and in arbitrary order.

    Arbitrary order is the mean of orders that each ran over all images, if all methods have such, since one model tells
    the interval of these; otherwise it is a new order in every batch.
    """
    # Of two that are equally long, max takes the first.
    arbitrary = max((_estimates(setup, "arbitrary", reading=each) for each in ("fixed", "per batch")), key=len)
    by_order = {"sequential order": _estimates(setup, "sequential"), "arbitrary order": arbitrary}
    return [Bar(order, method, value) for order, values in by_order.items() for method, value in values.items()]


def found(setup: SetupResults) -> str:
    """Which method is the most accurate in which order, and how accurate guessing would be; empty without scores."""
    by_order: dict[str, dict[str, Estimate]] = {}
    for bar in bars(setup):
        by_order.setdefault(bar.order, {})[bar.method] = bar.accuracy
    best = {order: max(values, key=lambda method: values[method].mean) for order, values in by_order.items()}
    parts = []
    for order, values in by_order.items():
        winner = best[order]
        text = f"in {order} {winner} is " + ("the most accurate, with" if len(values) > 1 else "right for")
        text += f" {tables.percent(values[winner])}%"
        beside = [name for name in dict.fromkeys(best.values()) if name != winner and name in values]
        text += "".join(f" ({name}: {tables.percent(values[name])}%)" for name in beside)
        if close := [name for name in values if name != winner and not _differ(values[winner], values[name])]:
            text += f", but {_listed(close)} can't be told apart from it"
        parts.append(text)
    if not parts:
        return ""
    guessing = {"chance": "guessing", "most frequent class": "always naming the most frequent class"}
    levels = _listed([f"{guessing[name]} is right for {value:.2f}%" for name, value in setup.levels.items()])
    return " ".join(f"{text[0].upper()}{text[1:]}." for text in ("; ".join(parts), f"{levels} of the images"))


def _estimates(setup: SetupResults, protocol: str, **variant: Any) -> dict[str, Estimate]:
    found = {method: estimate(setup.over_seeds(method, protocol, **variant)) for method in setup.samplers}
    return {method: value for method, value in found.items() if value is not None}


def _differ(one: Estimate, other: Estimate) -> bool:
    """Whether the 95% interval of the difference leaves out 0. All have the same images, so it does so more rarely."""
    if one.variance is None or other.variance is None:
        return False
    return abs(one.mean - other.mean) > half_width(total([one.variance, other.variance]))


def _several(count: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("s") else f"{what}s"
    return f"{count:,} {what if count == 1 else plural}"


def _listed(texts: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
