"""Fewer layers: figures 1b and 1c of arXiv 2407.04513, beyond them every subset of the layers, and fewer steps."""

from collections.abc import Sequence
from functools import partial

from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.report import curves, paper
from layershuffle.report.page import Picture, Section, Table
from layershuffle.report.sections.wording import heading, picture
from layershuffle.report.setups import SetupResults

BANDS = " Means over seeds; bands are one sample standard deviation."
SIDE_BY_SIDE = {"grouped": "steps", "asynchronous": "in flight"}
"""The protocols that run several layers at a time, and the number in their variants."""


def pruning(setup: SetupResults) -> Section | None:
    """Accuracy by the number of layers kept."""
    points = curves.pruned(setup)
    # A single number of layers makes no curve.
    if len({point.number for point in points}) < 2:
        return None
    # The caption goes on after the name of the setup, if there are several, and so begins with a small letter.
    caption = f"{setup.quality_in_words} by the number of layers kept, random ones"
    if any(point.method.startswith("reduced-depth") for point in points):
        caption += (
            " unless the model was refined at that depth (reduced-depth: its first layers, those it was refined with)"
        )
    caption += "."
    if any(point.accuracy.std is not None for point in points):
        caption += BANDS
    title = "Fewer layers (figures 1b and 1c)" if setup.in_paper else "Fewer layers"
    text = []
    if (setup.backbone, setup.data) == paper.PRUNED_SETUP:
        text.append(f"The paper: {paper.PRUNED}")
    return Section(heading(title, setup), text, [_curves("pruning", setup, points, caption)])


def every_subset(setup: SetupResults) -> Section | None:
    """The mean over every choice of k layers."""
    points = curves.all_subsets(setup)
    if not points:
        return None
    caption = f"{setup.quality_in_words}, the mean over every choice of k layers, in original sequence."
    if any(point.accuracy.std is not None for point in points):
        caption += BANDS
    title = heading(PROTOCOLS["landscape"].section, setup)
    return Section(title, [], [_curves("landscape", setup, points, caption)])


def several_at_a_time(setup: SetupResults) -> list[Section]:
    """The accuracy of layers that run side by side, and of layers that don't wait for each other."""
    written = []
    for name, key in SIDE_BY_SIDE.items():
        protocol = PROTOCOLS[name]
        points = curves.side_by_side(setup, name, key)
        if not points:
            continue
        number = protocol.xlabel or protocol.columns
        caption = f"{setup.quality_in_words}, the mean over orders, by the number of {number}."
        if any(point.accuracy.std is not None for point in points):
            caption += BANDS
        title = heading(protocol.section, setup)
        accuracies = _curves(name, setup, points, caption, number, protocol.descending)
        written.append(Section(title, [protocol.caption], [accuracies]))
    return written


def _curves(
    kind: str,
    setup: SetupResults,
    points: Sequence[curves.Point],
    caption: str,
    number: str = "layers kept",
    descending: bool = False,
) -> Picture:
    """The curves by a number of this name, whose values fall to the right if they are ``descending``."""
    data = Table(f"{setup.quality} in percent", ["sequence", "method", number, "mean", "std", "seeds"], [])
    for point in points:
        accuracy = point.accuracy
        std = "" if accuracy.std is None else f"{accuracy.std:.2f}"
        numbers = [str(point.number), f"{accuracy.mean:.2f}", std, str(accuracy.n)]
        data.rows.append([point.panel, point.method, *numbers])
    draw = partial(curves.curves, points, setup.levels, number, descending, setup.quality_in_words)
    return picture(kind, setup, caption, draw, data)
