"""Lists the configs, protocols, named orders and samplers that there are, each with one line."""

import argparse
import inspect
import itertools
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

from layershuffle.config_files import OWN, PACKAGED, listed, nearest
from layershuffle.errors import UserError
from layershuffle.orders.named import NAMED, form
from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.orders.samplers import OrderSampler

Rows = dict[str, str]
"""What each name of a section means."""


def list_command(args: list[str] | None = None) -> None:
    """List the sections that ``args`` name, by default all."""
    sections = {
        **_configs(),
        "protocols": {name: _summary(protocol.orders) for name, protocol in PROTOCOLS.items()},
        "orders": {form(name): _summary(function) for name, function in NAMED.items()},
        "samplers": {sampler.__name__: _summary(sampler) for sampler in OrderSampler.__subclasses__()},
    }
    parser = argparse.ArgumentParser(prog="layershuffle list", description="List what there is.")
    parser.add_argument("section", nargs="*", help=f"from {', '.join(sections)} (default: all)")
    wanted = parser.parse_args(args).section or list(sections)
    if unknown := [name for name in wanted if name not in sections]:
        suggestion = nearest(unknown[0], sections)
        raise UserError(f"there is nothing called {unknown[0]} to list{suggestion}: choose from {', '.join(sections)}")
    print("\n\n".join(_text(name, sections[name]) for name in wanted))


def _configs() -> dict[str, Rows]:
    """The configs by folder: ``model/vit_b16`` is in section ``models``. The user's own come before the package's."""
    files = [listed(folder, experiment) for experiment in (False, True) for folder in (OWN, PACKAGED)]
    sections: dict[str, Rows] = {}
    for full, path in (item for several in files for item in several.items()):
        kind, _, name = full.rpartition("/")
        section = {"": "configs", "data": "data"}.get(kind, f"{kind}s")
        sections.setdefault(section, {}).setdefault(name, _comment(path))
    first = [section for section in ("models", "data", "methods", "trainers", "optimizers") if section in sections]
    return {section: sections[section] for section in [*first, *sections]}


def _comment(path: Path) -> str:
    """The first sentence of the comment that a config begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    comment = " ".join(line.lstrip("# ") for line in lines)
    return re.split(r"(?<=\.)\s", comment)[0]


def _summary(described: Any) -> str:
    return (inspect.getdoc(described) or "").partition("\n")[0].replace("``", "")


def _text(section: str, rows: Rows) -> str:
    margin = 2 + max(map(len, rows)) + 2
    width = min(shutil.get_terminal_size().columns, 120)
    lines = [
        textwrap.fill(f"  {name:{margin - 2}}{line}", width, subsequent_indent=" " * margin)
        for name, line in rows.items()
    ]
    return "\n".join([section, *lines])
