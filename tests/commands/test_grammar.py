"""One grammar for all commands: the same word is the same option, of one type and with one help text."""

import argparse
import re
from collections import defaultdict
from importlib import import_module

import pytest

from layershuffle.commands import COMMANDS
from layershuffle.config_parser import ConfigParser

OF_LIBRARIES = ("help", "print_config", "print_shtab")
"""Options that jsonargparse adds, with its own texts."""
ABOUT_THE_COMMAND = {"data", "images", "exported", "steps"}
"""Options whose texts say what a command does with them: trains on the images, compares on them or draws them."""
HOW_MANY = {"order", "steps", "pictures"}
"""Options of which some commands take several values, and others just one or also none."""


class Parsed(Exception):  # noqa: N818 (it is no error)
    """A command has made its parser, which is the argument, and is about to read the command line."""


@pytest.fixture(scope="module")
def parsers():
    """The parser of each command, by the command's name."""

    def stop(parser, *_, **__):
        raise Parsed(parser)

    original = argparse.ArgumentParser.parse_known_args

    def stop_commands(parser, *args, **kwargs):
        # argparse is used for other things than commands, too.
        if parser.prog.startswith("layershuffle "):
            raise Parsed(parser)
        return original(parser, *args, **kwargs)

    by_command = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigParser, "parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop_commands)
        for command in COMMANDS:
            name = command.replace("-", "_")
            module = import_module(f"layershuffle.commands.{name}")
            run = getattr(module, f"{name}_command")
            with pytest.raises(Parsed) as parsed:
                run([])
            (by_command[command],) = parsed.value.args
    return by_command


def options_of(parser):
    """The options and positional arguments of a command's own; those of the parts of a run have a dot in their name."""
    for action in parser._actions:
        if type(action).__name__ == "_ActionConfigLoad":
            continue  # stands for all options of a part, such as --checkpoint for those of the best checkpoint
        name = action.dest
        if action.option_strings:
            name = max(action.option_strings, key=len).lstrip("-")
        if "." not in name and not name.endswith("+") and name not in OF_LIBRARIES:
            yield name, action


def kind(name, action):
    """What a value of an option can be: its type, its choices, and how many values there are."""
    value_type = getattr(action, "_typehint", None) or action.type or str
    type_name = str(value_type).replace(" | None", "").removeprefix("<class '").removesuffix("'>")
    choices = action.choices and list(action.choices)
    number_of_values = None if name in HOW_MANY else action.nargs
    return type_name, str(choices), number_of_values


def text(action):
    """A help text without the default, which each command has of its own."""
    return re.sub(r" \(default: .*\)\.", ".", action.help)


def test_the_same_word_means_the_same_in_all_commands(parsers):
    # For each option, the commands that have it, by its kind and by its text.
    kinds = defaultdict(dict)
    texts = defaultdict(dict)
    for command, parser in parsers.items():
        for name, action in options_of(parser):
            kinds[name].setdefault(kind(name, action), []).append(command)
            texts[name].setdefault(text(action), []).append(command)
    with_several_kinds = {name: commands for name, commands in kinds.items() if len(commands) > 1}
    assert with_several_kinds == {}
    with_several_texts = {name for name, commands in texts.items() if len(commands) > 1}
    assert with_several_texts <= ABOUT_THE_COMMAND, texts


def test_whatever_takes_a_timm_name_takes_its_weights_and_size(parsers):
    takes_weights_and_size = {}
    for command, parser in parsers.items():
        names = {name for name, _ in options_of(parser)}
        if "checkpoint" in names:
            takes_weights_and_size[command] = {"pretrained", "img_size"} <= names
    # Only what layershuffle train has trained can be exported.
    assert [command for command, takes in takes_weights_and_size.items() if not takes] == ["export"]
    assert len(takes_weights_and_size) > 8


@pytest.mark.parametrize("command", COMMANDS)
def test_help_texts_are_whole_sentences(parsers, command):
    for name, action in options_of(parsers[command]):
        assert action.help, name
        assert action.help[0].isupper(), f"{name}: {action.help}"
        assert action.help.endswith("."), f"{name}: {action.help}"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_true_or_false_takes_a_value_too(parsers, command):
    for name, action in options_of(parsers[command]):
        assert not isinstance(action, argparse._StoreTrueAction), name


def test_the_help_names_types_without_python_s_brackets(parsers):
    for command in ("pack", "push", "export", "report"):
        shown = parsers[command].format_help()
        assert "type: Path" in " ".join(shown.split())
        assert "<class" not in shown
