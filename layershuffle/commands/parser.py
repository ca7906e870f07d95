"""The parser of every command: that of configs, and a short help."""

import re
import textwrap
from collections.abc import Sequence
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
        common: the names of the options used most. Where there are any, ``--help`` shows these alone.
    """

    common: Sequence[str] = ()

    def format_help(self, *args: Any) -> str:
        """All options, or those used most where there are many, or those whose names begin as the word after --help."""
        # argparse knows --help as a flag and ignores what follows it.
        after_help = (word for arg, word in pairwise(self.command_line) if arg in ("--help", "-h"))
        word = next(after_help, "")
        if not self.common or word == "all":
            # jsonargparse writes the classes of values as Python prints them, perhaps on two lines.
            return re.sub(r"<class\s+'(\w+)'>", r"\1", super().format_help(*args))
        actions = {action.dest: action for action in self._actions if action.option_strings}
        names = self.common
        if word and not word.startswith("-"):
            # Whole parts of a name: "data" stands for data.root, and not for dataset.
            names = [name for name in actions if f"{name}.".startswith(f"{word}.")]
            if not names:
                raise UserError(f"no option begins with --{word}: see --help all")
        lines = [f"usage: {self.prog} [CONFIG ...] [options]", "", *textwrap.wrap(str(self.description), 80), ""]
        for name in names:
            text = _first_sentence(str(actions[name].help or ""))
            lines.append(textwrap.fill(text, 80, initial_indent=f"  --{name:32} ", subsequent_indent=" " * 37))
        lines += ["", "--help all explains every option, --help trainer those of the trainer,"]
        return "\n".join([*lines, "--data.help ImageFolders those of a data set.", ""])


def _first_sentence(text: str) -> str:
    """The first sentence of a help text, without marks of code and of argparse."""
    sentence = re.split(r"(?<=\.)\s", " ".join(text.split()))[0]
    return sentence.replace("``", "").replace("%%", "%")
