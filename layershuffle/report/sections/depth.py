"""Fewer layers: figures 1b and 1c of arXiv 2407.04513, and beyond them every subset of the layers."""

from collections.abc import Sequence
from functools import partial

from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.report import curves, paper
from layershuffle.report.page import Picture, Section, Table
from layershuffle.report.sections.wording import heading, picture
from layershuffle.report.setups import SetupResults

BANDS = " Means over seeds; bands are one sample standard deviation."


def pruning(setup: SetupResults) -> Section | None:
    """Accuracy by the number of layers kept."""
    points = curves.pruned(setup)
    # A single number of layers makes no curve.
    if len({point.kept for point in points}) < 2:
        return None
    caption = "accuracy by the number of layers kept, random ones"
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
    caption = f"the mean accuracy over every choice of k layers, in original sequence.{BANDS}"
    title = heading(PROTOCOLS["landscape"].section, setup)
    return Section(title, [], [_curves("landscape", setup, points, caption)])


def _curves(kind: str, setup: SetupResults, points: Sequence[curves.Point], caption: str) -> Picture:
    data = Table("top-1 in percent", ["sequence", "method", "layers kept", "mean", "std", "seeds"], [])
    for point in points:
        accuracy = point.accuracy
        std = "" if accuracy.std is None else f"{accuracy.std:.2f}"
        numbers = [str(point.kept), f"{accuracy.mean:.2f}", std, str(accuracy.n)]
        data.rows.append([point.panel, point.method, *numbers])
    return picture(kind, setup, caption, partial(curves.curves, points, setup.levels), data)
