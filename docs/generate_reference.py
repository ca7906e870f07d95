"""Generates the reference from the package: its API, commands and configs.

    python docs/generate_reference.py docs/reference

Sphinx does so before it reads the pages. What is generated is not kept in the repository.
"""

import argparse
import inspect
import re
import sys
from argparse import SUPPRESS
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from layershuffle.commands import COMMANDS
from layershuffle.commands.train import COMMON
from layershuffle.config_parser import ConfigParser

ROOT = Path(__file__).parent.parent

MODULES = {
    "layershuffle": "Functions and their results",
    "layershuffle.orders": "Orders and samplers",
    "layershuffle.orders.named": "Named orders",
    "layershuffle.orders.protocols": "Protocols",
    "layershuffle.models": "Models",
    "layershuffle.models.backbones": "Backbone families",
    "layershuffle.data": "Data",
    "layershuffle.training": "Training",
    "layershuffle.training.objectives": "Objectives",
    "layershuffle.results": "Results",
    "layershuffle.results.measures": "Measures",
    "layershuffle.results.tables": "Tables",
    "layershuffle.results.figures": "Figures",
    "layershuffle.checkpoints.programs": "Exported programs",
    "layershuffle.serving.cluster": "Serving",
    "layershuffle.serving.policy": "Routing policies",
    "layershuffle.serving.scenario": "Simulated clusters",
}
"""The modules of the API and the titles of their pages."""

CONFIG_FOLDERS = {
    "model": "Models",
    "data": "Data sets",
    "method": "Methods",
    "recipe": "Recipes",
    "optimizer": "Optimizers",
    "trainer": "Trainers",
    "experiment": "Experiments",
}


def write(folder: Path) -> None:
    """Write the generated pages; files that are already right are left alone, so that Sphinx reads no page again."""
    pages = {f"api/{module}.md": page for module, page in api_pages().items()}
    pages["commands.md"] = commands_page()
    pages["train_options.md"] = train_page()
    pages["configs.md"] = configs_page()
    for name, page in pages.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text() != page:
            path.write_text(page)


# --- The API ------------------------------------------------------------------------------------------------


def api_pages() -> dict[str, str]:
    """A page for each module; what several modules offer stands on the page of the first."""
    pages = {}
    documented: set[int] = set()
    for module, title in MODULES.items():
        directives = []
        # Functions come first: they are what most readers look for.
        for name, value in sorted(public(module), key=lambda item: inspect.isclass(item[1])):
            if id(value) in documented:
                continue
            documented.add(id(value))
            directives.append(directive(module, name, value))
        text = inspect.cleandoc(import_module(module).__doc__ or "")
        body = "\n\n".join([f".. currentmodule:: {module}", *directives])
        # Sphinx's own markup, since docstrings are written in it.
        pages[module] = f"# {title}\n\n`{module}`: {text}\n\n```{{eval-rst}}\n{body}\n```\n"
    names = "\n".join(MODULES)
    pages["index"] = f"# Python\n\n```{{toctree}}\n:maxdepth: 1\n\n{names}\n```\n"
    return pages


def public(name: str) -> Iterator[tuple[str, Any]]:
    """The public classes and functions of a module."""
    module = import_module(name)
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            key for key, value in vars(module).items() if getattr(value, "__module__", "") == name and key[0] != "_"
        ]
    for key in names:
        value = getattr(module, key)
        if inspect.isclass(value) or inspect.isfunction(value):
            # The package imports its functions when they are first used; autodoc looks for them in the module.
            setattr(module, key, value)
            yield key, value


def directive(module: str, name: str, value: Any) -> str:
    """What tells autodoc to describe a class or a function."""
    if inspect.isclass(value):
        bases = "\n   :show-inheritance:" if value.__bases__ != (object,) else ""
        return f".. autoclass:: {module}.{name}\n   :members:{bases}"
    return f".. autofunction:: {module}.{name}"


# --- Commands -----------------------------------------------------------------------------------------------


class ParserMade(Exception):  # noqa: N818 (it is no error)
    """A command has made its parser and is about to read its arguments."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of a command."""

    def stop(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise ParserMade(parser)

    name = command.replace("-", "_")
    run = getattr(import_module(f"layershuffle.commands.{name}"), f"{name}_command")
    try:
        with patch.object(ConfigParser, "parse_args", stop), patch.object(argparse.ArgumentParser, "parse_args", stop):
            run([])
    except ParserMade as made:
        return made.args[0]
    raise RuntimeError(f"layershuffle {command} has read its arguments by itself")


def commands_page() -> str:
    """Every command with its options."""
    parts = [
        "# Commands",
        "`layershuffle COMMAND --help` shows the same. Write options with dashes or underscores. An option that is "
        "true or false needs no value.",
    ]
    for command, summary in COMMANDS.items():
        parser = parser_of(command)
        parts += [f"## {command}", escaped(str(parser.description or summary))]
        if command == "train":
            rows = [f"| `--{name}` | {escaped(text)} |" for name, text in COMMON.items()]
            parts += ["These are the options used most; [here are all](train_options.md).", table(["option", ""], rows)]
        else:
            parts.append(options_table(shown_actions(parser)))
    return "\n\n".join(parts) + "\n"


def train_page() -> str:
    """The options of ``layershuffle train`` by the parts of a run, since there are more than a hundred."""
    classes = "[data sets](api/layershuffle.data.md), [samplers](api/layershuffle.orders.md) and objectives"
    parts = ["# All options of train", f"The arguments of {classes} are options too, such as `--data.root`."]
    parts_of_runs: dict[str, list[argparse.Action]] = {}
    for action in shown_actions(parser_of("train")):
        part = action.dest.split(".")[0]
        parts_of_runs.setdefault(part if "." in action.dest else "run", []).append(action)
    for part, actions in parts_of_runs.items():
        parts += [f"## {part.capitalize()}", options_table(actions)]
    return "\n\n".join(parts) + "\n"


def options_table(actions: Iterable[argparse.Action]) -> str:
    """A line for each option."""
    return table(["option", "", "default"], [row(action) for action in actions])


def shown_actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The options and positional arguments that help shows, without those that show help or stand for a whole part."""
    for action in parser._actions:
        shows_help = any(option == "-h" or option.endswith(".help") for option in action.option_strings)
        if action.help != SUPPRESS and not shows_help and type(action).__name__ != "_ActionConfigLoad":
            yield action


def name_of(action: argparse.Action) -> str:
    """The name of an option, or of a positional argument. An option of jsonargparse that ends in + adds to a list."""
    if not action.option_strings:
        return str(action.metavar or action.dest).upper()
    return [option for option in action.option_strings if not option.endswith("+")][-1]


def row(action: argparse.Action) -> str:
    """A line of a command's table."""
    values = ", ".join(f"`{value}`" for value in action.choices or ())
    text = escaped(str(action.help or ""))
    if values and values not in text:
        text += f" One of {values}."
    return f"| `{name_of(action)}` | {text} | {default(action)} |"


def default(action: argparse.Action) -> str:
    """The default of an option, if its help doesn't say it and it is short."""
    value = action.default
    if value is None or value == SUPPRESS or "default:" in str(action.help or ""):
        return ""
    if isinstance(value, bool):
        value = str(value).lower()
    text = escaped(str(value).replace(str(ROOT), "."))
    return f"`{text}`" if 0 < len(text) <= 40 else ""


def escaped(text: str) -> str:
    """A help text as a cell of a table."""
    text = " ".join(text.replace("%%", "%").replace("%(prog)s", "layershuffle").split())
    # Lightning's texts name things as Sphinx does: of :class:`package.Class` the last part is shown.
    text = re.sub(r":[\w:]+:`~?(?:[^`]*\.)?([^`.]+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    # Outside code, what looks like HTML, a formula or a cell of a table is none.
    pieces = re.split(r"(`[^`]*`)", text)
    for index in range(0, len(pieces), 2):
        pieces[index] = re.sub(r"([<>*\[\]$])", r"\\\1", pieces[index])
    return "".join(pieces).replace("|", r"\|")


def table(header: list[str], rows: list[str]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *rows]
    return "\n".join(lines)


# --- Configs ------------------------------------------------------------------------------------------------


def configs_page() -> str:
    """Every config with the comment on its top."""
    parts = [
        "# Configs",
        "The files in `configs/`, by the names that commands understand.",
    ]
    for folder, title in CONFIG_FOLDERS.items():
        parts.append(f"## {title}")
        for path in sorted((ROOT / "configs" / folder).glob("*.yaml")):
            comment, content = split_config(path.read_text())
            parts += [f"### {path.stem}", escaped(comment)]
            # Experiments are long; their files say the rest.
            if folder != "experiment":
                parts.append(f"```yaml\n{content}```")
    return "\n\n".join(part for part in parts if part) + "\n"


def split_config(text: str) -> tuple[str, str]:
    """The comment on top of a config, and the rest."""
    lines = text.splitlines(keepends=True)
    count = 0
    while count < len(lines) and lines[count].startswith("#"):
        count += 1
    comment = " ".join(line.lstrip("# ").strip() for line in lines[:count])
    return comment, "".join(lines[count:])


if __name__ == "__main__":
    write(Path(sys.argv[1]))
