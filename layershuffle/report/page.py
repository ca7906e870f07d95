"""The report as a page that needs nothing else, and as Markdown with its pictures and data beside it."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from layershuffle.files import write_whole
from layershuffle.results.figures import rendered, save
from layershuffle.results.markdown import plain
from layershuffle.results.tables import as_csv

LONGEST_NAME = 100
"""How many characters the name of a picture has, before a number that tells it from others."""


@dataclass(frozen=True)
class TableCell:
    """A cell of a table: its text, small notes below it, and whether the last note is highlighted."""

    text: str
    notes: list[str] = field(default_factory=list)
    marked: bool = False


@dataclass(frozen=True)
class Table:
    """A table under a caption.

    Attributes:
        caption: what it shows.
        header: the names of the columns.
        rows: the cells, row by row; a cell without notes can be just its text.
        folded: whether the page shows only the caption until the reader opens it.
    """

    caption: str
    header: list[str]
    rows: list[list[TableCell | str]]
    folded: bool = False

    def cells(self) -> list[list[TableCell]]:
        """The rows, with a TableCell in place of every text."""
        return [[_as_cell(cell) for cell in row] for row in self.rows]

    def texts(self) -> list[list[str]]:
        """The rows as texts alone, without notes."""
        return [[cell.text for cell in row] for row in self.cells()]


def _as_cell(cell: TableCell | str) -> TableCell:
    """The cell; a text becomes one without notes."""
    return cell if isinstance(cell, TableCell) else TableCell(cell)


@dataclass(frozen=True)
class Picture:
    """A figure under a caption, and its data.

    Attributes:
        name: the name of its files, in lower-case letters, digits and dashes.
        caption: what it shows.
        draw: draws the figure.
        data: the numbers in it.
        folded: whether the page shows only the caption until the reader opens it.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]
    data: Table
    folded: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z0-9-]+", self.name):
            raise ValueError(f"a picture can't be named {self.name!r}: names are made by slug()")


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs, and tables and pictures."""

    title: str
    text: list[str] = field(default_factory=list)
    parts: list[Table | Picture] = field(default_factory=list)


def slug(*words: str) -> str:
    """The name of a picture's files, made of any words. ``write`` tells pictures of one name apart."""
    letters = re.sub("[^a-z0-9]+", "-", " ".join(words).lower())
    # Words in other scripts leave nothing, and a file's name can't be of any length.
    return letters[:LONGEST_NAME].strip("-") or "picture"


def write(title: str, sections: Sequence[Section], folder: Path) -> None:
    """Write ``index.html``, ``report.md``, ``figures/*.png`` and ``data/*.csv``.

    Raises:
        UserError: if one of them can't be written.
    """
    sections = _named_apart(sections)
    # The page holds its pictures as SVG, so that it can be sent around as a single file.
    page = _environment(autoescape=True).get_template("report.html")
    write_whole(folder / "index.html", page.render(title=title, sections=sections, svg=_svg))

    # Markdown can't hold pictures: they and their data stand beside it.
    markdown = _environment(autoescape=False, finalize=_markdown).get_template("report.md")
    write_whole(folder / "report.md", markdown.render(title=title, sections=sections))
    for section in sections:
        for part in section.parts:
            if isinstance(part, Picture):
                save(part.draw(), folder / "figures" / f"{part.name}.png")
                write_whole(folder / "data" / f"{part.name}.csv", as_csv(part.data.header, part.data.texts()))


def _named_apart(sections: Sequence[Section]) -> list[Section]:
    """The sections, in which every picture after the first of a name has a number in it."""
    taken: set[str] = set()
    named = []
    for section in sections:
        parts: list[Table | Picture] = []
        for part in section.parts:
            if not isinstance(part, Picture):
                parts.append(part)
                continue
            name = part.name
            number = 1
            while name in taken:
                number += 1
                name = f"{part.name}-{number}"
            taken.add(name)
            parts.append(replace(part, name=name))
        named.append(replace(section, parts=parts))
    return named


def _environment(**options: Any) -> Environment:
    """A jinja2 environment with the report's templates and the test "picture"; the options are ``Environment``'s."""
    loader = PackageLoader("layershuffle.report")
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, **options)
    environment.tests["picture"] = lambda part: isinstance(part, Picture)
    return environment


def _markdown(value: Any) -> Any:
    """What the template for Markdown writes for a value. Names in results files can be anything, and are escaped."""
    return plain(value) if isinstance(value, str) else value


def _svg(picture: Picture) -> Markup:
    """The picture as SVG to stand in a page. matplotlib has escaped the texts in it."""
    svg = rendered(picture.draw(), "svg").decode()
    svg = svg[svg.index("<svg") :]  # without the XML declaration, which has no place within a page
    # Two drawings in one page must not share ids.
    mark = f"{picture.name}-"  # slug() has left no characters that need escaping.
    for reference in ('id="', 'href="#', "url(#"):
        svg = svg.replace(reference, f"{reference}{mark}")
    return Markup(svg.replace("<svg ", f'<svg role="img" aria-label="{picture.name}" ', 1))
