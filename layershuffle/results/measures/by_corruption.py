"""How a model does under each corruption of ImageNet-C (arXiv 1903.12261)."""

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import ClassVar

from matplotlib.figure import Figure

from layershuffle.errors import UserError
from layershuffle.results.figures.drawing import grouped_bars, legend_below, panels
from layershuffle.results.measures.kind_of_orders import KindOfOrders
from layershuffle.results.record import Measure, ReportSection, Results, register
from layershuffle.results.table import Rows, Table

ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
"""AlexNet's error on each corruption, mean over the severities, by which the mean corruption error divides.

The authors publish them in the spreadsheet that the readme of github.com/hendrycks/robustness links to. Here they stand
as in ``get_ce_alexnet``, which the code of many papers shares.
"""
SEVERITIES = {1, 2, 3, 4, 5}
MCE = "mCE"
"""What tables call the mean corruption error."""


@dataclass(frozen=True)
class Corruption:
    """One corruption in one severity.

    Attributes:
        name: such as "fog".
        severity: from 1 to 5.
        images: how many images were classified.
    """

    name: str
    severity: int
    images: int


@dataclass(frozen=True)
class OrdersOnCorruptions(KindOfOrders):
    """How the images were classified in the orders of one protocol and variant, all of them counted together.

    Attributes:
        right: of each corruption and severity, how many images were classified rightly; each counts for each order.
    """

    right: list[int]


@register
@dataclass(frozen=True)
class ByCorruptionCounts(Measure):
    """How the images of each corruption were classified.

    Attributes:
        corruptions: what the images are corrupted by.
        orders: the counts for each kind of order.
    """

    name: ClassVar[str] = "by_corruption"
    picture: ClassVar[str] = "corruptions"
    caption: ClassVar[str] = "The top-1 error on each corruption, mean over its severities."
    section: ClassVar[ReportSection | None] = ReportSection("Error on each corruption")
    corruptions: list[Corruption]
    orders: list[OrdersOnCorruptions]

    def check(self, results: Results) -> None:
        """Raise a UserError if something is counted of images that there aren't."""
        if not self.corruptions or not self.orders:
            raise UserError("by_corruption counts nothing")
        for counts in self.orders:
            if counts.samples < 1 or len(counts.right) != len(self.corruptions):
                raise UserError(f"by_corruption doesn't count {len(self.corruptions)} kinds of images")
            for right, corruption in zip(counts.right, self.corruptions):
                if not 0 <= right <= counts.samples * corruption.images:
                    raise UserError(f"by_corruption counts {right} of {corruption.images} images as right")

    def errors(self, counts: OrdersOnCorruptions) -> dict[str, dict[int, float]]:
        """The share of images that are classified wrongly, 0 to 1, by corruption and severity."""
        errors: dict[str, dict[int, float]] = {}
        for right, corruption in zip(counts.right, self.corruptions):
            # Of few images chosen at random, a corruption may have none.
            if corruption.images:
                share = 1 - right / (counts.samples * corruption.images)
                errors.setdefault(corruption.name, {})[corruption.severity] = share
        return errors

    def mean_errors(self, counts: OrdersOnCorruptions) -> dict[str, float]:
        """The error on each corruption, mean over its severities: ``test.py`` of github.com/hendrycks/robustness."""
        return {name: fmean(of_severity.values()) for name, of_severity in self.errors(counts).items()}

    def mean_corruption_error(self, counts: OrdersOnCorruptions) -> float | None:
        """The mean corruption error (mCE, arXiv 1903.12261, section 4.1): 1 is AlexNet's.

        None unless there are all 15 corruptions that it is the mean of, in all severities.
        """
        errors = self.errors(counts)
        means = self.mean_errors(counts)
        relative = []
        for name, of_alexnet in ALEXNET.items():
            severities = set(errors.get(name, ()))
            if severities != SEVERITIES:
                return None
            relative.append(means[name] / of_alexnet)
        return fmean(relative)

    def summary(self, counts: OrdersOnCorruptions) -> dict[str, float]:
        """The error on each corruption by its name, their "mean" and, if it can be computed, MCE: 1 stands for 100%."""
        summary = self.mean_errors(counts)
        summary["mean"] = fmean(summary.values())
        relative = self.mean_corruption_error(counts)
        if relative is not None:
            summary[MCE] = relative
        return summary

    def tables(self, results: Results) -> dict[str, Table]:
        """The error on each corruption, their mean and, if it can be computed, the mean corruption error."""
        header = ["corruption"] + [counts.name for counts in self.orders]
        summaries = [self.summary(counts) for counts in self.orders]
        rows = []
        for name in summaries[0]:
            cells = [f"{100 * summary[name]:.2f}" for summary in summaries]
            rows.append([name, *cells])
        return {"corruptions": Table(header, rows)}

    def files(self, results: Results) -> dict[str, Table]:
        """The error on each corruption in each severity."""
        rows: Rows = []
        for counts in self.orders:
            for name, of_severity in self.errors(counts).items():
                for severity, error in of_severity.items():
                    rows.append([counts.name, name, str(severity), f"{100 * error:.2f}"])
        return {"corruptions": Table(["order", "corruption", "severity", "top-1 error %"], rows)}

    def data(self, results: Results) -> tuple[str, Table]:
        """The printed table."""
        return "top-1 error in percent", self.tables(results)["corruptions"]

    def figure(self, results: Results, title: str = "") -> Figure:
        """Bars of the error on each corruption, one for each kind of order."""
        by_order = {counts.name: self.summary(counts) for counts in self.orders}
        # A single panel needs no title of its own.
        return draw_errors({"": by_order}, title)


def draw_errors(errors: Mapping[str, Mapping[str, Mapping[str, float]]], title: str = "") -> Figure:
    """Bars of the error on each corruption and of their mean.

    Args:
        errors: what ``ByCorruptionCounts.summary`` returns, by the title of the panel and then by what the legend calls
            the bars. A bar that is missing in a panel leaves its place empty.
        title: of the picture.
    """
    kinds: dict[str, None] = {}  # sets that keep the sequence
    names: dict[str, None] = {}
    for in_panel in errors.values():
        for kind, summary in in_panel.items():
            kinds[kind] = None
            names.update(dict.fromkeys(summary))
    # The mean corruption error is relative to AlexNet's: it is no share of images, and may be larger than 100%.
    names.pop(MCE, None)

    # In inches: room for each bar, and for a gap between two corruptions.
    height = 1.2 + 0.13 * len(names) * (len(kinds) + 1)
    figure, axes = panels(len(errors), 3.4 + 4.2 * len(errors), height, title, grid=False)
    for axis, (panel, in_panel) in zip(axes, errors.items()):
        bars = []
        for kind in kinds:
            summary = in_panel.get(kind, {})
            # A bar as wide as NaN isn't drawn.
            widths = [100 * summary.get(name, math.nan) for name in names]
            bars.append((textwrap.shorten(kind, 30), widths))
        grouped_bars(axis, bars, list(names))
        axis.set(title=textwrap.shorten(panel, 40), xlabel="top-1 error, %", xlim=(0, 100))
    # All panels have the same bars.
    handles, _ = axes[0].get_legend_handles_labels()
    legend_below(figure, handles)
    return figure
