"""Results as pictures: an overview, the drawings that protocols name, and what the pictures of measures share."""

from layershuffle.results.figures.drawing import (
    COLOURS,
    band,
    draw_levels,
    legend_below,
    panels,
    rendered,
    save,
)
from layershuffle.results.figures.overview import overview
from layershuffle.results.figures.plots import Plot, draw, plots
from layershuffle.results.figures.protocols import DRAWINGS

__all__ = [
    "COLOURS",
    "DRAWINGS",
    "Plot",
    "band",
    "draw",
    "draw_levels",
    "legend_below",
    "overview",
    "panels",
    "plots",
    "rendered",
    "save",
]
