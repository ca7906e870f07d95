"""The parser of every command: that of configs, and a short help."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from layershuffle.config_parser import ConfigParser
from layershuffle.errors import UserError


def asks_for_help(args: Sequence[str]) -> bool:
    """Whether a command line asks for the help of a command: then nothing need be imported that the command needs."""
    return "--help" in args or "-h" in args


class Parser(ConfigParser):
    """The parser of a command.

    Attributes:
        common: the options used most, and what each is for. Where there are any, ``--help`` shows these alone.
    """

    common: Mapping[str, str] = {}

    def format_help(self, *args: Any) -> str:
        """All options, or those used most where there are many, or those whose names begin as the word after --help."""
        word = word_after_help(self.command_line)
        if not self.common or word == "all":
            # jsonargparse writes the classes of values as Python prints them, perhaps on two lines.
            return re.sub(r"<class\s+'(\w+)'>", r"\1", super().format_help(*args))
        if not word:
            return short_help(str(self.prog), str(self.description), self.common)
        texts: dict[str, str] = {}
        for action in self._actions:
            # Whole parts of a name: "data" stands for data.root, and not for dataset.
            if action.option_strings and f"{action.dest}.".startswith(f"{word}."):
                texts[action.dest] = _first_sentence(str(action.help or ""))
        if not texts:
            raise UserError(f"no option begins with --{word}: see --help all")
        return short_help(str(self.prog), str(self.description), texts)


def word_after_help(args: Sequence[str]) -> str:
    """The word after ``--help``, which argparse takes for a flag; empty if an option follows it, or nothing."""
    for arg, word in pairwise(args):
        if arg in ("--help", "-h") and not word.startswith("-"):
            return word
    return ""


def short_help(prog: str, description: str, texts: Mapping[str, str]) -> str:
    """A help of some options alone: by name, what each is for."""
    lines = [f"usage: {prog} [CONFIG ...] [options]", "", *textwrap.wrap(description, 80), ""]
    for name, text in texts.items():
        lines.append(textwrap.fill(text, 80, initial_indent=f"  --{name:32} ", subsequent_indent=" " * 37))
    lines += ["", "--help all explains every option, --help trainer those of the trainer,"]
    return "\n".join([*lines, "--data.help ImageFolders those of a data set.", ""])


def _first_sentence(text: str) -> str:
    """The first sentence of a help text, without marks of code and of argparse."""
    sentence = re.split(r"(?<=\.)\s", " ".join(text.split()))[0]
    return sentence.replace("``", "").replace("%%", "%")
