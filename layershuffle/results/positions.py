"""What layers do at each position, drawn from results files (arXiv 2407.04513, figure 4)."""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from scipy.stats import gaussian_kde

from layershuffle.orders.order import Order
from layershuffle.results.record import Results

MAP = colormaps["viridis"]


def representations(several: Sequence[Results]) -> Figure:
    """Figures 4a and 4b: UMAP of one layer's output, a point for each image, coloured by the position it held."""
    figure, axes, colours = _panels(several, "representations", 4.6)
    for axis, results in zip(axes, several):
        found = results.measures["representations"]
        x, y = np.array(found["plane"]).T
        axis.scatter(x, y, c=colours.to_rgba(np.array(found["positions"])), s=8, linewidths=0, rasterized=True)
        axis.set(title=f"{results.label}, layer {found['layer']}", xticks=[], yticks=[])
    return figure


def contributions(several: Sequence[Results]) -> Figure:
    """Figures 4c and 4d: how much each layer changes the class token, a ridge for each, coloured by position."""
    figure, axes, colours = _panels(several, "contributions", 5.6)
    changes = [by_layer_and_position(results) for results in several]
    low, high = np.percentile(np.concatenate([v for found in changes for v in found.values()]), (0.1, 99.9))
    grid = np.linspace(np.log10(low) - 0.2, np.log10(high) + 0.2, 250)
    for axis, results, found in zip(axes, several, changes):
        layers = sorted({layer for layer, _ in found})
        for (layer, position), values in sorted(found.items()):
            logs = np.log10(values)
            if len(logs) > 2 and np.ptp(logs) > 0:
                ridge = layer - 1.6 * (density := gaussian_kde(logs)(grid)) / density.max()
                colour = colours.to_rgba(np.array(position))
                axis.fill_between(10**grid, layer, ridge, color=colour, alpha=0.35, lw=0, rasterized=True)
        axis.set(title=results.label, xscale="log", ylim=(len(layers) - 0.5, -1.8), yticks=layers)
        axis.set(xlabel="change of the class token, relative to its norm")
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_ylabel("layer")
    return figure


def by_layer_and_position(results: Results) -> dict[tuple[int, int], np.ndarray]:
    """The relative changes of the class token of all images, by the layer and the position that it held."""
    found: dict[tuple[int, int], list[float]] = {}
    measured = results.measures["contributions"]
    for order, changes in zip(measured["orders"], measured["changes"]):
        for position, (step, change) in enumerate(zip(Order(order), changes)):
            found.setdefault((step[0].layer, position), []).append(change)
    return {key: np.array(values) for key, values in found.items()}


def _panels(several: Sequence[Results], study: str, height: float) -> tuple[Figure, list[Axes], ScalarMappable]:
    """A panel for each of the results, which share a bar of the positions' colours."""
    positions = max(len(Order(results.measures[study]["orders"][0])) for results in several)
    colours = ScalarMappable(BoundaryNorm(np.arange(-0.5, positions), MAP.N), MAP)
    figure = Figure(figsize=(1.4 + 4.2 * len(several), height), layout="constrained")
    axes: list[Axes] = list(figure.subplots(1, len(several), squeeze=False)[0])
    figure.colorbar(colours, ax=axes, label="position", ticks=range(positions), shrink=0.8).minorticks_off()
    return figure, axes, colours
