"""Lists the configs, protocols, named orders and samplers that there are, each with one line."""

import argparse
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

FEWEST_COLUMNS = 20
"""Summaries that would be in a narrower column have lines of their own, below their names."""
MOST_COLUMNS = 120
"""Lines are no wider, however wide the terminal is: longer ones are hard to read."""


class Parser(argparse.ArgumentParser):
    """Python's own parser, because jsonargparse takes long to import."""

    def error(self, message: str) -> NoReturn:
        """Raise a UserError; argparse calls this for every fault in the arguments."""
        raise UserError(message)


def list_command(args: list[str] | None = None) -> None:
    """List the sections that ``args`` name, by default all; raises UserError if there is no such section."""
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
    blocks = [_block(name, sections[name], width) for name in names]
    print("\n\n".join(blocks))


def _block(title: str, summaries: Mapping[str, str], width: int) -> str:
    """A section as text: its title, and below it each name with its summary.

    All summaries begin in one column, or on a narrow terminal below their names.

    Args:
        title: the section.
        summaries: what to say of each name.
        width: how many characters a line may have.
    """
    longest_name = max(len(name) for name in summaries)
    # Two spaces before the names, and at least two after them.
    margin = 2 + longest_name + 2
    lines = [title]
    for name, summary in summaries.items():
        if width - margin < FEWEST_COLUMNS:
            lines.append(f"  {name}")
            lines.append(textwrap.fill(summary, width, initial_indent=" " * 4, subsequent_indent=" " * 4))
        else:
            line = f"  {name}".ljust(margin) + summary
            lines.append(textwrap.fill(line, width, subsequent_indent=" " * margin))
    return "\n".join(lines)


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
    # A section without configs has nothing to list.
    return {section: summaries for section, summaries in sections.items() if summaries}


def _summary(path: Path) -> str:
    """The first sentence of the comment with which a config begins."""
    comment = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        # Some comments begin with the path of the config, which says nothing here.
        is_path = re.fullmatch(r"# *\S+\.ya?ml", line)
        if not is_path:
            comment.append(line.lstrip("# "))
    # A sentence ends with a full stop before a space. Full stops within words, as in 0.1 or config.yaml, end nothing.
    sentences = re.split(r"(?<=\.)\s", " ".join(comment))
    return sentences[0]
