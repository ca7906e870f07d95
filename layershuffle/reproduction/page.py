"""The report as a page that needs nothing else, and as Markdown with its pictures and data beside it."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from layershuffle.files import write_whole

DARK: dict[Any, Any] = {
    "text.color": "#e6e6e6",
    "axes.labelcolor": "#e6e6e6",
    "axes.edgecolor": "#9a9a9a",
    "xtick.color": "#e6e6e6",
    "ytick.color": "#e6e6e6",
    "grid.color": "#666666",
}
CLEAR: dict[Any, Any] = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.hashsalt": "layershuffle",
}


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it says, small notes below, and whether the last of these is to catch the eye."""

    text: str
    notes: list[str] = field(default_factory=list)
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table under a caption; a cell that is a text has only that."""

    caption: str
    header: list[str]
    rows: list[list[Cell | str]]
    folded: bool = False

    def cells(self) -> list[list[Cell]]:
        """The rows with every cell a Cell."""
        return [[at if isinstance(at, Cell) else Cell(at) for at in row] for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """A figure under a caption, drawn by ``draw`` in whatever style is in force, and the data in it.

    ``name`` is that of its files.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]
    data: Table


@dataclass(frozen=True)
class Section:
    """A heading, what is to be said, tables and pictures."""

    title: str
    text: list[str] = field(default_factory=list)
    parts: list[Table | Picture] = field(default_factory=list)


def write(title: str, sections: Sequence[Section], folder: Path) -> None:
    """Write ``index.html``, ``report.md``, ``figures/*.png`` and ``data/*.csv``."""
    environment = Environment(
        loader=PackageLoader("layershuffle.reproduction"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["picture"] = lambda part: isinstance(part, Picture)
    page = environment.get_template("report.html").render(title=title, sections=sections, svg=_svg)
    write_whole(folder / "index.html", page)
    environment.autoescape = False
    write_whole(folder / "report.md", environment.get_template("report.md").render(title=title, sections=sections))
    for section in sections:
        for part in section.parts:
            if isinstance(part, Picture):
                write_whole(folder / "figures" / f"{part.name}.png", _rendered(part.draw, "png"))
                write_whole(folder / "data" / f"{part.name}.csv", _csv(part.data))


def _svg(picture: Picture, dark: bool) -> str:
    with mpl.rc_context(CLEAR | (DARK if dark else {})):
        drawn = _rendered(picture.draw, "svg").decode()
    # Two drawings in one page must not share ids.
    drawn = drawn[drawn.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{picture.name}" ', 1)
    mark = f"{picture.name}-{'dark' if dark else 'light'}-"
    return drawn.replace('id="', f'id="{mark}').replace('href="#', f'href="#{mark}').replace("url(#", f"url(#{mark}")


def _rendered(draw: Callable[[], Figure], form: str) -> bytes:
    buffer = io.BytesIO()
    draw().savefig(buffer, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return buffer.getvalue()


def _csv(table: Table) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.header)
    writer.writerows([cell.text for cell in row] for row in table.cells())
    return buffer.getvalue()
