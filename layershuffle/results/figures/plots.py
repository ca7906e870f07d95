"""Which pictures there are of one model's results, and how they get to files."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from layershuffle.errors import UserError
from layershuffle.orders.protocols import Protocol
from layershuffle.results import tables
from layershuffle.results.figures.drawing import save
from layershuffle.results.figures.overview import overview
from layershuffle.results.figures.protocols import DRAWINGS, has_number
from layershuffle.results.record import Measure, Results


@dataclass(frozen=True)
class Plot:
    """A picture of one model's results.

    Attributes:
        name: the name of its file.
        caption: what it shows.
        figure: draws it, from the results and a title.
        protocols: the protocols whose scores it shows.
        section: the title of the report's section that shows the same for all models together; empty if there is none.
        measure: the measure that it shows, if any.
    """

    name: str
    caption: str
    figure: Callable[[Results, str], Figure]
    protocols: tuple[str, ...] = ()
    section: str = ""
    measure: Measure | None = None


def plots(results: Results) -> list[Plot]:
    """The pictures that ``results`` fill, but for the overview."""
    # A measure may draw scores together with what it measured; then their protocols need no picture of their own.
    measured = [measure for measure in results.measures if measure.picture]
    in_measures: set[str] = set()
    for measure in measured:
        in_measures.update(measure.protocols)

    # Protocols that name the same picture are drawn into it together.
    by_picture: dict[str, list[Protocol]] = {}
    for protocol in tables.shown(results):
        if protocol.figure not in (None, "overview") and protocol.name not in in_measures:
            by_picture.setdefault(protocol.picture or protocol.name, []).append(protocol)

    # First the pictures of protocols, then those of measures.
    pictures = [_plot_of_protocols(results, name, protocols) for name, protocols in by_picture.items()]
    for measure in measured:
        section = measure.section.title if measure.section else ""
        caption = measure.caption_for(results)
        pictures.append(Plot(measure.picture, caption, measure.figure, measure.protocols, section, measure))
    return pictures


def _plot_of_protocols(results: Results, name: str, protocols: list[Protocol]) -> Plot:
    """The picture that some protocols share."""
    first = protocols[0]
    scored = [protocol.name for protocol in protocols]
    figure = first.figure
    if not figure:
        figure = "lines" if first.columns else "bars"
    # Without a number in a variant, lines have no x axis.
    if figure == "lines" and not any(has_number(score) for score in results.of(*scored)):
        figure = "bars"

    draw: Callable[[Results, str], Figure]
    if callable(figure):
        draw = figure
    elif figure in DRAWINGS:
        draw = partial(DRAWINGS[figure], protocols)
    else:
        raise UserError(f"the protocol {name} has no figure {figure}: choose from {', '.join(DRAWINGS)}")

    captions = [protocol.caption for protocol in protocols]
    caption = " ".join([f"{results.quality_in_words.capitalize()}:", *captions])
    # Only several orders of the same variant differ in accuracy.
    has_several = False
    for (protocol_name, *_), scores in results.groups().items():
        if protocol_name in scored and len(scores) > 1:
            has_several = True
    if has_several and figure == "lines":
        caption += " Bands reach from the worst order to the best."
    elif has_several and figure == "bars":
        caption += " Black lines reach from the worst order to the best."
    return Plot(name, caption, draw, tuple(scored), first.section)


def draw(results: Results, output: Path, title: str = "") -> dict[str, Path]:
    """Draw every picture that ``results`` fill, beside the results file ``output``.

    Returns:
        Where each went, by its name.

    Raises:
        UserError: if one can't be written, or a protocol names a figure that there isn't.
    """
    figures: dict[str, Callable[[Results, str], Figure]] = {}
    if _needs_overview(results):
        figures["overview"] = lambda results, title: overview([results], title)
    for plot in plots(results):
        figures[plot.name] = plot.figure

    # The first picture is named like the results file, the others have their own name before the suffix.
    paths: dict[str, Path] = {}
    for name, figure in figures.items():
        path = output.with_suffix(f".{name}.png" if paths else ".png")
        save(figure(results, title), path)
        paths[name] = path
    return paths


def _needs_overview(results: Results) -> bool:
    """Whether there are scores that belong into the overview, or that no other picture shows."""
    # An evaluation without any other picture gets the overview, so that it has at least one.
    covered: set[str] = set()
    for plot in plots(results):
        covered.update(plot.protocols)
    if results.scores and not covered:
        return True
    return any(protocol.figure == "overview" and protocol.name not in covered for protocol in tables.shown(results))
