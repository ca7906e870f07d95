"""The report as a page that needs nothing else, and as Markdown with its pictures and data beside it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from layershuffle.files import write_whole
from layershuffle.results.figures import rendered, save
from layershuffle.results.tables import as_csv


@dataclass(frozen=True)
class TableCell:
    """A cell of a table: its text, small notes below it, and whether the last note is highlighted."""

    text: str
    notes: list[str] = field(default_factory=list)
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table under a caption; a cell without notes can be given as its text."""

    caption: str
    header: list[str]
    rows: list[list[TableCell | str]]
    folded: bool = False

    def cells(self) -> list[list[TableCell]]:
        """The rows, with a TableCell in place of every text."""
        return [[cell if isinstance(cell, TableCell) else TableCell(cell) for cell in row] for row in self.rows]


@dataclass(frozen=True)
class Picture:
    """A figure under a caption, drawn by ``draw``, and its data; ``name`` is the name of its files."""

    name: str
    caption: str
    draw: Callable[[], Figure]
    data: Table


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and tables and pictures."""

    title: str
    text: list[str] = field(default_factory=list)
    parts: list[Table | Picture] = field(default_factory=list)


def write(title: str, sections: Sequence[Section], folder: Path) -> None:
    """Write ``index.html``, ``report.md``, ``figures/*.png`` and ``data/*.csv``."""
    environment = Environment(
        loader=PackageLoader("layershuffle.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["picture"] = lambda part: isinstance(part, Picture)
    page = environment.get_template("report.html").render(title=title, sections=sections, svg=_svg)
    write_whole(folder / "index.html", page)
    environment.autoescape = False
    write_whole(folder / "report.md", environment.get_template("report.md").render(title=title, sections=sections))
    for section in sections:
        for part in section.parts:
            if isinstance(part, Picture):
                save(part.draw(), folder / "figures" / f"{part.name}.png")
                rows = [[cell.text for cell in row] for row in part.data.cells()]
                write_whole(folder / "data" / f"{part.name}.csv", as_csv(part.data.header, rows))


def _svg(picture: Picture) -> str:
    with mpl.rc_context({"svg.hashsalt": "layershuffle"}):  # so that the same figure always gets the same ids
        drawn = rendered(picture.draw(), "svg").decode()
    drawn = drawn[drawn.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{picture.name}" ', 1)
    mark = f"{picture.name}-"  # because two drawings in one page must not share ids
    return drawn.replace('id="', f'id="{mark}').replace('href="#', f'href="#{mark}').replace("url(#", f"url(#{mark}")
