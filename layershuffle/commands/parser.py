"""The parser of every command: configs by name, both spellings of flags, and errors of one sentence."""

import re
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, get_args

from lightning.pytorch.cli import LightningArgumentParser

from layershuffle.commands.errors import user_error
from layershuffle.config_files import find, nearest
from layershuffle.errors import UserError
from layershuffle.files import read_yaml


class Parser(LightningArgumentParser):
    """LightningCLI's parser, with more ways to say the same and shorter errors.

    - Words before the first flag are configs, found by name: ``vit_b16`` is ``--config configs/model/vit_b16.yaml``.
      They come after the positional arguments, such as the checkpoint, where a command has any.
    - ``--batch-size`` is ``--batch_size``, and so for every option.
    - Keys and tokens are refused, because configs are saved and logged.
    - What ``dump`` writes begins with the command line as a comment.
    - A class is read before its arguments, wherever it stands: ``--data.root pets --data ImageFolders``.
    - With ``common``, the names of the options used most, ``--help`` shows these alone.
    """

    common: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._given: list[str] = []

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse a command line, by default that of the process."""
        args = sys.argv[1:] if args is None else list(args)
        self._given = args
        self.dump_header = [shlex.join([*str(self.prog).split(), *args]).replace("\n", " ")]
        args = self.expanded(args)
        for path in option_values(args, "--config"):
            # If there is no such file, the parser says it better.
            if Path(path).is_file() and not isinstance(read_yaml(path), dict):
                raise UserError(
                    f"{path} holds no options: a config is a mapping, such as 'trainer: {{max_epochs: 20}}'"
                )
        config = super().parse_args(args, *rest, **kwargs)
        refuse_secrets(config.as_dict())
        return config

    def expanded(self, args: Sequence[str]) -> list[str]:
        """The command line in its long form: names of configs as ``--config=PATH``, options with underscores."""
        args = [re.sub("^--[^=]+", lambda name: "--" + name[0][2:].replace("-", "_"), arg) for arg in args]
        if "--config" not in self._option_string_actions:
            return args
        positional = sum(not action.option_strings for action in self._actions)
        words = next((index for index, arg in enumerate(args) if arg.startswith("-")), len(args))
        configs = [f"--config={find(name)}" for name in args[positional:words]]
        return [*args[: min(positional, words)], *configs, *self._classes_first(args[words:])]

    def _classes_first(self, args: Sequence[str]) -> list[str]:
        """Move each option that names a class to before the first option of this class."""
        options: list[list[str]] = []
        for arg in args:
            if options and not re.match("--?[a-z]", arg):
                options[-1].append(arg)  # a value
            else:
                options.append([arg])
        for option in [*options]:
            name = option[0].partition("=")[0]
            names = [each[0] for each in options]
            first = next((at for at, other in enumerate(names) if other.startswith(f"{name}.")), len(options))
            if first < (at := next(at for at, each in enumerate(options) if each is option)) and self._classes(name):
                options.insert(first, options.pop(at))
        return [arg for option in options for arg in option]

    def _classes(self, option: str) -> list[str]:
        """The names of the classes that an option such as ``--model.sampler`` can be."""
        kind = getattr(self._option_string_actions.get(option), "_typehint", None)
        return sorted(_subclasses(kind)) if kind else []

    def format_help(self, *args: Any) -> str:
        """All options, or those used most where there are many, or those whose names begin as the word after --help."""
        asked = next((other for arg, other in pairwise(self._given) if arg in ("--help", "-h")), "")
        if not self.common or asked == "all":
            return super().format_help(*args)
        known = {action.dest: action for action in self._actions if action.option_strings}
        chosen = self.common
        if asked and not asked.startswith("-"):
            chosen = [name for name in known if f"{name}.".startswith(f"{asked}.")]
            if not chosen:
                raise UserError(f"no option begins with --{asked}: see --help all")
        lines = [f"usage: {self.prog} [CONFIG ...] [options]", "", *textwrap.wrap(str(self.description), 80), ""]
        for name in chosen:
            about = (
                re.split(r"(?<=\.)\s", " ".join(str(known[name].help or "").split()))[0]
                .replace("``", "")
                .replace("%%", "%")
            )
            lines.append(textwrap.fill(about, 80, initial_indent=f"  --{name:32} ", subsequent_indent=" " * 37))
        lines += ["", "--help all explains every option, --help trainer those of the trainer,"]
        return "\n".join([*lines, "--data.help ImageFolders those of a data set.", ""])

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError; argparse and jsonargparse call this for every fault in arguments and configs."""
        key = re.match(r'Parser key "([^"]+)":', message)
        if cause := user_error(ex):  # It may be the same error about an argument of the class that the key is.
            if key and (inner := re.match("--(.*)", str(cause), re.DOTALL)):
                raise UserError(f"--{key[1]}.{inner[1]}") from ex
            raise cause
        if found := re.search(r"Expected a dot import path string: ([^\s']+)", message):
            option = f"--{key[1]}" if key else ""
            if classes := self._classes(option):
                choice = f": choose from {', '.join(classes)}" if len(classes) < 15 else ""
                suggestion = f"{nearest(found[1], classes)}{choice}"
                raise UserError(
                    f"{option}: there is no class named {found[1]}{suggestion}, or give the import path of your own"
                ) from ex
        if found := re.fullmatch(r"Option '(.+)' is not accepted", message):
            names = [name.lstrip("-") for name in self._option_string_actions]
            raise UserError(f"--{found[1]}: there is no such option{nearest(found[1], names)}") from ex
        if unknown := re.match(r"unrecognized arguments: (.*)", message):
            raise UserError(self._unrecognized(unknown[1].split())) from ex
        message = re.sub(r"\n\s*- Expected a path but .* either not accessible or invalid(\s*- )?", " ", message)
        message = re.sub(r"\n\s*- Expected a dot import path string: \S+", "", message)
        message = re.sub(r"Not of type (\w+): (\S+) does not conform.*", r"Expected a \1. Got value: \2", message)
        message = re.sub(r"Not of type (\w+): .*: '(.*)'$", r"Expected a \1. Got value: \2", message)
        message = re.sub(r"Not of type (\w+): .*", r"Expected a \1", message)  # among others: the value comes last
        message = _ALTERNATIVES.sub(lambda found: f"{found['errors'].strip()} (given: {found['value'][:100]})", message)
        message = re.sub(r"\n\s*- Expected a <class 'NoneType'>", "", message)
        message = re.sub(r"Expected a typing.Literal\[(.*)\]", _choice, message)
        message = re.sub(r"Expected a (?:<class ')?(\w+)\b(?:'>)?", _kind, message)
        message = re.sub(r"\n\s*- expected ", " or ", message).replace("a whole number or a number", "a number")
        message = re.sub(r"\. Got value: (.*)", r" (given: \1)", message)
        message = re.sub(r'Parser key "([^"]+)"(?: element \d+)?:', r"--\1:", message)
        if "required: model.name" in message or "required: data" in message:
            message += ": name a model and a data set, as in layershuffle train vit_b16 cifar100 layershuffle gpu"
        raise UserError(message) from ex

    def _unrecognized(self, words: Sequence[str]) -> str:
        """What to say of a word that is no option and no option's value."""
        wrong = next((word.partition("=")[0] for word in words if word.startswith("--")), None)
        if wrong:
            names = [name for name in self._option_string_actions if not name.endswith(("+", ".help"))]
            return f"there is no option {wrong}{nearest(wrong, names)}: see --help"
        if "--config" in self._option_string_actions:
            return f"{words[0]} is no option's value: name configs before the first option"
        return f"unrecognized arguments: {' '.join(words)}: see --help"


_ALTERNATIVES = re.compile(
    r"Does not validate against any of the Union subtypes\s+Subtypes:.*?\s+Errors:\s+-(?P<errors>.*?)\s+"
    r"Given value type:.*?\s+Given value: (?P<value>.*)",
    re.DOTALL,
)

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "dict": "a mapping",
    "list": "a list",
    "PositiveInt": "a whole number from 1 up",
    "NonNegativeInt": "a whole number from 0 up",
    "PositiveFloat": "a number above 0",
}
"""What jsonargparse's names of types mean."""


def _kind(found: re.Match[str]) -> str:
    """In plain words, which type of value was expected."""
    return f"expected {_KINDS[found[1]]}" if found[1] in _KINDS else found[0]


def _choice(found: re.Match[str]) -> str:
    """In plain words, which of some values was expected."""
    return f"expected {re.sub(', (?=[^,]*$)', ' or ', found[1])}"


def _subclasses(kind: Any) -> set[str]:
    """The names of the classes that a type hint admits; none if it admits a number or a text, which can be anything."""
    if not isinstance(kind, type):
        kinds = [part for arg in get_args(kind) for part in (arg if isinstance(arg, list) else [arg])]
        return set() if {int, float, str} & set(kinds) else set().union(*map(_subclasses, kinds))
    if kind.__module__ == "builtins":
        return set()
    children: list[type] = kind.__subclasses__()
    names = {name for sub in children for name in (sub.__name__, *_subclasses(sub))}
    return {name for name in names if not name.startswith("_")}


def option_values(args: Sequence[str], name: str) -> list[str]:
    """The values given for the option ``name``, as ``name value`` or ``name=value``."""
    spaced = [value for arg, value in pairwise(args) if arg == name]
    return spaced + [arg.partition("=")[2] for arg in args if arg.startswith(f"{name}=")]


def refuse_secrets(config: Any, path: str = "") -> None:
    """Raise a UserError if a config, which is saved and logged, holds a key or a token."""
    if isinstance(config, Mapping):
        for name, value in config.items():
            refuse_secrets(value, f"{path}.{name}".removeprefix("."))
    elif isinstance(config, list):
        for index, value in enumerate(config):
            refuse_secrets(value, f"{path}.{index}")
    elif config and re.search(r"(api_?key|(?<!class_)token|password|secret)$", path, re.IGNORECASE):
        raise UserError(
            f"{path} would be saved with the run: set the environment variable WANDB_API_KEY, or use wandb login"
        )
