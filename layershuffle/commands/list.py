"""Lists the configs, protocols, named orders and samplers that there are, each with one line."""

import argparse
import itertools
import re
import shutil
import textwrap
from typing import NoReturn

from layershuffle.config_files import known, nearest
from layershuffle.errors import UserError
from layershuffle.orders.named import NAMED
from layershuffle.orders.protocols import PROTOCOLS
from layershuffle.orders.samplers import all_samplers


def list_command(args: list[str] | None = None) -> None:
    """List the sections that ``args`` name, by default all."""
    sections = {
        **_configs(),
        "protocols": {name: protocol.caption for name, protocol in PROTOCOLS.items()},
        "orders": {order.form: order.summary for order in NAMED.values()},
        "samplers": {sampler.__name__: sampler.summary for sampler in all_samplers()},
    }
    parser = argparse.ArgumentParser(prog="layershuffle list", description="List what there is.")
    parser.add_argument("section", nargs="*", help=f"from {', '.join(sections)} (default: all)")
    parser.error = _refuse  # type: ignore[method-assign]
    wanted = parser.parse_args(args).section or list(sections)
    if unknown := [name for name in wanted if name not in sections]:
        suggestion = nearest(unknown[0], sections)
        raise UserError(f"there is nothing called {unknown[0]} to list{suggestion}: choose from {', '.join(sections)}")
    width = min(shutil.get_terminal_size().columns, 120)
    blocks = []
    for section in wanted:
        margin = 4 + max(map(len, sections[section]))
        rows = [f"  {name:{margin - 2}}{line}" for name, line in sections[section].items()]
        blocks.append(
            "\n".join([section, *(textwrap.fill(row, width, subsequent_indent=" " * margin) for row in rows)])
        )
    print("\n\n".join(blocks))


def _refuse(message: str) -> NoReturn:
    raise UserError(message)


def _configs() -> dict[str, dict[str, str]]:
    """The first sentence of each config's comment, by section and name: ``model/vit_b16`` is in section ``models``."""
    sections: dict[str, dict[str, str]] = {"models": {}, "data": {}, "methods": {}, "trainers": {}, "optimizers": {}}
    for full, path in (known() | known(experiment=True)).items():
        kind, _, name = full.rpartition("/")
        section = {"": "configs", "data": "data"}.get(kind, f"{kind}s")
        lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
        comment = " ".join(line.lstrip("# ") for line in lines if not re.fullmatch(r"# *\S+\.ya?ml", line))  # its path
        sections.setdefault(section, {})[name] = re.split(r"(?<=\.)\s", comment)[0]
    return sections
