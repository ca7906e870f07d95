"""The parser of configs and options that commands and the Python API share."""

import os
import re
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from layershuffle.command_lines import (
    join_options,
    option_values,
    split_options,
    with_underscores,
    words_before_options,
)
from layershuffle.config_files import find, nearest
from layershuffle.errors import UserError, user_error
from layershuffle.files import read_yaml
from layershuffle.renamed_options import new_name
from layershuffle.type_hints import alternatives, class_names

# How jsonargparse's messages name what is wrong. They are shown as they are, under one line of ours.
KEY = re.compile(r'Parser key "(?P<key>[^"]+)"(?: element \d+)?:')
UNKNOWN_KEY = re.compile(r"(?:Group '(?P<group>.+)' does not accept o|O)ption '(?P<key>[^']+)'(?: is not accepted)?")
NO_CLASS = re.compile(r"Expected a dot import path string: (?P<name>[^\s']+)")
VALUE = re.compile(r"(?:Got|Given) value: (?P<value>.*)")
OUT_OF_RANGE = re.compile(
    r"Not of type (?P<type>\w+): (?:(?P<value>\S+) )?does not conform to restriction (?P<range>[^\n]+)"
)
NO_NUMBER = re.compile(r"Not of type (?P<type>\w+): ")
NO_LITERAL = re.compile(r"(?:with base 10|string to float): '(?P<value>[^\n]*)'")
ONE_OF = re.compile(r"Expected a typing\.Literal\[(?P<words>[^\]]+)\]")
OF_TYPE = re.compile(r"Expected a <class '(?P<type>\w+)'>")
COMPARISONS = {">=": "of at least ", "<=": "at most ", ">": "above ", "<": "below "}
"""How the ranges in these messages compare a number, longer ones first, and what we say instead."""
TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
"""What we call the types in these messages."""


class ConfigParser(ArgumentParser):
    """jsonargparse's parser, with more ways to say the same and one-line errors.

    - Words before the first option are configs, found by name: ``vit_b16`` is ``--config configs/model/vit_b16.yaml``.
      They come after the positional arguments, such as the checkpoint, where a command has any.
    - ``--batch-size`` is ``--batch_size``, and so for every option.
    - An option that is true or false needs no value: ``--compile`` is ``--compile true``.
    - A class is read before its arguments, wherever it stands: ``--data.root pets --data ImageFolders``.
    - Keys and tokens are refused, because configs are saved and logged.
    - What ``dump`` writes begins with the command line as a comment.
    - A ``UserError`` says in one line what is wrong. Its notes are jsonargparse's own message.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # With abbreviations, a word that means one option today would be refused once another begins alike.
        kwargs.setdefault("allow_abbrev", False)
        super().__init__(*args, **kwargs)
        self.command_line: list[str] = []

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse a command line, by default that of the process."""
        self.command_line = sys.argv[1:] if args is None else list(args)
        # jsonargparse writes these lines as comments above every config that it dumps. An argument with a line break
        # would end the comment.
        self.dump_header = [shlex.join([*str(self.prog).split(), *self.command_line]).replace("\n", " ")]

        args = self.expanded(self.command_line)
        self._check_config_files(args)
        config = super().parse_args(args, *rest, **kwargs)
        for key, value in list(config.items()):
            config[key] = _plain(value)

        # Here and not before, because a config file may hold a key as well as an option.
        refuse_secrets(config.as_dict())
        return config

    def expanded(self, args: Sequence[str]) -> list[str]:
        """The command line in its long form, which jsonargparse's own parser understands.

        Options have underscores and their values, configs stand as ``--config=PATH``, and a class stands before its
        arguments. A command line in its long form stays as it is.
        """
        args = [with_underscores(arg) for arg in args]
        words = words_before_options(args)
        options = [self._with_value(option) for option in split_options(args[len(words) :])]
        if "--config" not in self._option_string_actions:
            return [*words, *join_options(options)]

        # The positional arguments come first, and the words after them are configs.
        positional_count = sum(not action.option_strings for action in self._actions)
        configs = [f"--config={find(name)}" for name in words[positional_count:]]
        return [*words[:positional_count], *configs, *join_options(self._classes_first(options))]

    def _check_config_files(self, args: Sequence[str]) -> None:
        """Raise a UserError if a file that holds options can't be one.

        jsonargparse reads such files from ``--config``, and also from options such as ``--trainer`` or ``--data``,
        which take a file in place of values or of a class.

        Args:
            args: the command line in its long form.
        """
        if "--config" not in self._option_string_actions:
            return
        for option in split_options(args[len(words_before_options(args)) :]):
            name, equals, joined_value = option[0].partition("=")
            if self._is_path_or_text(name):
                continue
            for value in [joined_value] if equals else option[1:]:
                # jsonargparse would open it and wait, for ever if nobody writes into a pipe.
                if os.path.exists(value) and not (os.path.isfile(value) or os.path.isdir(value)):
                    raise UserError(f"{name} {value} is a pipe or a device: give a regular file")

        for path in option_values(args, "--config"):
            # jsonargparse would say of such a file only that its value is wrong. If there is no file, it says so.
            if os.path.isfile(path) and not isinstance(read_yaml(path), dict):
                raise UserError(
                    f"{path} holds no options: a config is a mapping, such as 'trainer: {{max_epochs: 20}}'"
                )

    def _is_path_or_text(self, name: str) -> bool:
        """Whether an option takes nothing but a path or a text, which jsonargparse hands on and doesn't open."""
        return all(kind in (str, Path, type(None)) for kind in alternatives(self._type(name)))

    def _with_value(self, option: list[str]) -> list[str]:
        """Give an option that is true or false its value, if it has none: ``--compile`` becomes ``--compile=true``.

        What follows it and is neither ``true`` nor ``false`` is left for the positional arguments.
        """
        name, *values = option
        if "=" in name:
            return option
        if values:
            # What follows an option that can also be a number or a text is its value.
            needs_value = self._is_only_boolean(name) and values[0].lower() not in ("true", "false")
        else:
            # The types of a class's arguments are not known here. If this one isn't a boolean, "true" is refused.
            needs_value = self._is_boolean(name) or self._is_argument_of_a_class(name)
        if not needs_value:
            return option
        return [f"{name}=true", *values]

    def _is_boolean(self, name: str) -> bool:
        """Whether an option can be true or false, such as ``bool | None``."""
        return bool in alternatives(self._type(name))

    def _is_only_boolean(self, name: str) -> bool:
        """Whether an option can be nothing but true, false or null."""
        return all(kind in (bool, type(None)) for kind in alternatives(self._type(name)))

    def _is_argument_of_a_class(self, name: str) -> bool:
        """Whether an option such as ``--data.balanced`` belongs to the class that another option names."""
        if name in self._option_string_actions:
            return False
        return any(name.startswith(f"{option}.") and self._classes(option) for option in self._option_string_actions)

    def _type(self, name: str) -> Any:
        """The type of an option; None if it has none, or if there is no such option."""
        return getattr(self._option_string_actions.get(name), "_typehint", None)

    def _classes_first(self, options: Sequence[list[str]]) -> list[list[str]]:
        """Move each option that names a class to before the first argument of this class.

        jsonargparse reads options one by one, and refuses ``--data.root`` until ``--data`` has named a class with it.
        """
        ordered = list(options)
        for option in options:
            name = option[0].partition("=")[0]
            if not self._classes(name):
                continue
            # By identity: the same option may stand there twice.
            index = next(index for index, other in enumerate(ordered) if other is option)
            for earlier in range(index):
                if ordered[earlier][0].startswith(f"{name}."):
                    ordered.insert(earlier, ordered.pop(index))
                    break
        return ordered

    def _classes(self, option: str) -> list[str]:
        """The names of the classes that an option such as ``--model.sampler`` can be."""
        kind = self._type(option)
        return sorted(class_names(kind)) if kind else []

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError; argparse and jsonargparse call this for every fault in arguments and configs.

        jsonargparse parses the arguments of a class with a parser of its own, which is a ``ConfigParser`` too and calls
        this first. It knows ``--data.root`` as ``--root``, so that the outer parser completes the name.
        """
        key = KEY.match(message)
        # What the inner parser has raised, or one of our own types, says already what is wrong.
        cause = user_error(ex)
        if cause:
            if key and str(cause).startswith("--"):
                full_name = f"--{key['key']}.{str(cause)[2:]}"
                raise _with_notes(full_name, getattr(cause, "__notes__", ())) from ex
            raise cause

        unrecognized = "unrecognized arguments: "
        if message.startswith(unrecognized):
            raise UserError(self._unrecognized(message.removeprefix(unrecognized).split())) from ex
        # A key of a config, or of a class, comes in other words than an option of the command line.
        unknown = UNKNOWN_KEY.fullmatch(message)
        if unknown:
            group = f"{unknown['group']}." if unknown["group"] else ""
            raise UserError(self._unknown_key(group + unknown["key"])) from ex
        # A training needs these two, and there are configs for both.
        if "required: model.name" in message or "required: data" in message:
            raise UserError(
                "name a model and a data set, as in layershuffle train vit_b16 cifar100 layershuffle gpu; "
                "--model.name names a timm model without a config, and images of your own are --data ImageFolders "
                "--data.root FOLDER"
            ) from ex
        if not key:
            raise UserError(message) from ex

        # What is left is about the value of one option, and may take many lines, a few for each type that it can have.
        reason = textwrap.dedent(message[key.end() :].strip("\n"))
        self._refuse_value(f"--{key['key']}", reason, ex)

    def _refuse_value(self, option: str, message: str, ex: Exception | None) -> NoReturn:
        """Raise a UserError about the value of an option, under which jsonargparse's ``message`` is shown."""
        renamed = new_name(str(self.prog), option)
        if renamed:
            raise _with_notes(f"{option} can't have this value; it is now {renamed}", [message]) from ex
        no_class = NO_CLASS.search(message)
        classes = self._classes(option)
        if no_class and classes:
            # A longer list hides the suggestion.
            choice = f": choose from {', '.join(classes)}" if len(classes) < 15 else ""
            suggestion = f"{nearest(no_class['name'], classes)}{choice}"
            line = f"there is no class named {no_class['name']}{suggestion}, or give the import path of your own"
            raise UserError(f"{option}: {line}") from ex
        given = _given(message)
        expected = _expected(message)
        if given and expected:
            raise UserError(f"{option} is {expected}, not {given[:100]}") from ex
        if given:
            raise _with_notes(f"{option} can't be {given[:100]}: see --help", [message]) from ex
        # A message of several lines tells what each type of the option has against the value.
        if "\n" in message:
            raise _with_notes(f"{option} has a value that it can't have: see --help", [message]) from ex
        raise UserError(f"{option}: {message.strip()}") from ex

    def _unrecognized(self, words: Sequence[str]) -> str:
        """What to say of a word that is no option and no option's value."""
        # An option among them is the mistake, and the words around it only its values.
        unknown_option = next((word.partition("=")[0] for word in words if word.startswith("--")), None)
        if unknown_option:
            renamed = new_name(str(self.prog), unknown_option)
            if renamed:
                return f"{unknown_option} is now {renamed}"
            # jsonargparse adds --x+ to append to a list and --x.help: nobody means these by mistake.
            names = [name for name in self._option_string_actions if not name.endswith(("+", ".help"))]
            return f"there is no option {unknown_option}{nearest(unknown_option, names)}: see --help"

        # An option may be a flag today that took a value in an earlier version.
        for option, value in pairwise(self.command_line):
            renamed = new_name(str(self.prog), f"{option} {value}")
            if renamed and value == words[0]:
                return f"{option} {value} is now {renamed}"
        if "--config" in self._option_string_actions:
            return f"{words[0]} is no option's value: name configs before the first option"
        return f"there is no use for {' '.join(words)}: see --help"

    def _unknown_key(self, key: str) -> str:
        """What to say of a key of a config, or of a class's arguments, that isn't there."""
        renamed = new_name(str(self.prog), key)
        if renamed:
            return f"--{key} is now {renamed}"
        # The outer parser of a class's arguments completes what begins with the option.
        names = [name.lstrip("-") for name in self._option_string_actions]
        return f"--{key}: there is no such option{nearest(key, names)}"


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


def _plain(value: Any) -> Any:
    """A value with plain numbers in place of jsonargparse's bounded ones, whose classes no checkpoint can hold."""
    if isinstance(value, list):
        return [_plain(part) for part in value]
    if isinstance(value, bool):
        return value
    # Their classes are made while the program runs, derived from int or float. A bool is an int to Python.
    for number in (int, float):
        if isinstance(value, number):
            return number(value)
    return value


def _given(message: str) -> str | None:
    """The value that jsonargparse's message refuses, or None if it doesn't name it."""
    value = VALUE.search(message) or OUT_OF_RANGE.search(message) or NO_LITERAL.search(message)
    return value["value"] if value else None


def _expected(message: str) -> str | None:
    """What jsonargparse's message says an option takes, such as "a whole number above 0 or 'auto'".

    None if there is more to it than numbers, words and texts: then the message itself is better.
    """
    kinds = []
    for line in message.splitlines():
        if "Expected" not in line and "Not of type" not in line:
            continue
        kind = _kind(line)
        if kind is None:
            return None
        # That an option can be null helps nobody who has given a wrong value.
        if kind != "null":
            kinds.append(kind)
    return " or ".join(kinds) or None


def _kind(line: str) -> str | None:
    """The one kind of value that a line of jsonargparse's message expects; None for others than plain values."""
    words = ONE_OF.search(line)
    if words:
        names = [word.strip("'") for word in words["words"].split(", ")]
        return f"one of {', '.join(names)}" if len(names) > 1 else names[0]
    plain = OF_TYPE.search(line)
    if plain:
        return "null" if plain["type"] == "NoneType" else TYPES.get(plain["type"])
    number = NO_NUMBER.search(line)
    if number is None:
        return None
    kind = "a number" if number["type"].endswith("Float") else "a whole number"
    out_of_range = OUT_OF_RANGE.search(line)
    if out_of_range is None:
        return kind
    limits = out_of_range["range"]
    for sign, words_for_it in COMPARISONS.items():
        limits = limits.replace(f"v{sign}", words_for_it)
    return f"{kind} {limits}"


def _with_notes(message: str, notes: Sequence[str]) -> UserError:
    """A UserError under which the ``notes`` are shown."""
    error = UserError(message)
    for note in notes:
        error.add_note(note)
    return error
