"""Lists the configs, protocols, named orders and samplers that there are, each with one line."""

import argparse
import itertools
import re
import shutil
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from layershuffle.config_files import known, nearest
from layershuffle.errors import UserError
from layershuffle.orders.named import NAMED
from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.orders.sampler import all_samplers
from layershuffle.published_models import PUBLISHED

SECTIONS = {
    "model": "models",
    "data": "data",
    "method": "methods",
    "trainer": "trainers",
    "optimizer": "optimizers",
    "recipe": "recipes",
    "experiment": "experiments",
}
"""The section that lists the configs of a folder. Those of a user's other folders are in a section "FOLDERs"."""

MOST_COLUMNS = 120


class Parser(argparse.ArgumentParser):
    """Python's own parser, because jsonargparse takes long to import."""

    def error(self, message: str) -> NoReturn:
        """Raise a UserError; argparse calls this for every fault in the arguments."""
        raise UserError(message)


def list_command(args: list[str] | None = None) -> None:
    """List the sections that ``args`` name, by default all."""
    sections = {
        **_configs(),
        "protocols": {name: protocol.caption for name, protocol in PROTOCOLS.items()},
        "orders": {order.form: order.summary for order in NAMED.values()},
        "samplers": {sampler.__name__: sampler.summary for sampler in all_samplers()},
    }
    parser = Parser(prog="layershuffle list", description="List what there is.")
    choice = ", ".join(sections)
    parser.add_argument("section", nargs="*", help=f"Sections to list, from {choice} (default: all).")
    names = parser.parse_args(args).section or list(sections)
    for name in names:
        if name not in sections:
            suggestion = nearest(name, sections)
            raise UserError(f"there is nothing called {name} to list{suggestion}: choose from {choice}")
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    print("\n\n".join(_block(name, sections[name], width) for name in names))


def _block(title: str, lines: Mapping[str, str], width: int) -> str:
    """A section: its title, and a line for each name, the texts below each other."""
    margin = 4 + max(len(name) for name in lines)
    rows = [title]
    for name, text in lines.items():
        row = f"  {name:{margin - 2}}{text}"
        rows.append(textwrap.fill(row, width, subsequent_indent=" " * margin))
    return "\n".join(rows)


def _configs() -> dict[str, dict[str, str]]:
    """The first sentence of each config's comment, by section and name: ``model/vit_b16`` is in section ``models``.

    Published models are among the models.
    """
    sections: dict[str, dict[str, str]] = {section: {} for section in SECTIONS.values()}
    for full_name, path in (known() | known(experiment=True)).items():
        folder, _, name = full_name.rpartition("/")
        # A user's configs may stand in other folders, or in none.
        section = SECTIONS.get(folder, f"{folder}s" if folder else "configs")
        sections.setdefault(section, {})[name] = _summary(path)
    # Of a published model, its scores say more than the config that trains it further.
    for name, model in PUBLISHED.items():
        sections["models"][name] = str(model)
    return {section: lines for section, lines in sections.items() if lines}


def _summary(path: Path) -> str:
    """The first sentence of the comment with which a config begins."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    # The comment may begin with the path of the config.
    texts = [line.lstrip("# ") for line in lines if not re.fullmatch(r"# *\S+\.ya?ml", line)]
    return re.split(r"(?<=\.)\s", " ".join(texts))[0]
