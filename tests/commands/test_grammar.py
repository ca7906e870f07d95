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
"""Whose texts say what a command does with them: trains on the images, compares on them or draws them."""
HOW_MANY = {"order", "steps", "pictures"}
"""Of which some commands take just one, or also none."""


class Parsed(Exception):  # noqa: N818 (it is no error)
    """A command has made its parser and is about to read its arguments."""


@pytest.fixture(scope="module")
def parsers():
    """The parser of each command, by the command's name."""

    def stop(parser, *_, **__):
        raise Parsed(parser)

    original = argparse.ArgumentParser.parse_known_args

    def stop_commands(parser, *args, **kwargs):
        if parser.prog.startswith("layershuffle "):
            raise Parsed(parser)
        return original(parser, *args, **kwargs)

    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConfigParser, "parse_args", stop)
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop_commands)
        for command in COMMANDS:
            name = command.replace("-", "_")
            run = getattr(import_module(f"layershuffle.commands.{name}"), f"{name}_command")
            with pytest.raises(Parsed) as parsed:
                run([])
            (found[command],) = parsed.value.args
    return found


def options_of(parser):
    """The options and positional arguments of a command's own; those of the parts of a run have a dot in their name."""
    for action in parser._actions:
        name = max(action.option_strings, key=len).lstrip("-") if action.option_strings else action.dest
        if type(action).__name__ == "_ActionConfigLoad":
            continue  # stands for all options of a part, such as --checkpoint for those of the best checkpoint
        if "." not in name and not name.endswith("+") and name not in OF_LIBRARIES:
            yield name, action


def kind(name, action):
    """What a value of an option can be."""
    several = action.nargs if name not in HOW_MANY else None
    type_ = str(getattr(action, "_typehint", None) or action.type or str).replace(" | None", "")
    return type_.removeprefix("<class '").removesuffix("'>"), str(action.choices and list(action.choices)), several


def text(action):
    """A help text without the default, which each command has of its own."""
    return re.sub(r" \(default: .*\)\.", ".", action.help)


def test_the_same_word_means_the_same_in_all_commands(parsers):
    kinds, texts = defaultdict(dict), defaultdict(dict)
    for command, parser in parsers.items():
        for name, action in options_of(parser):
            kinds[name].setdefault(kind(name, action), []).append(command)
            texts[name].setdefault(text(action), []).append(command)
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}
    several = {name for name, found in texts.items() if len(found) > 1}
    assert several <= ABOUT_THE_COMMAND, texts


def test_whatever_takes_a_timm_name_takes_its_weights_and_size(parsers):
    taking = {}
    for command, parser in parsers.items():
        names = [name for name, _ in options_of(parser)]
        if "checkpoint" in names:
            taking[command] = {"pretrained", "img_size"} <= set(names)
    # Only what layershuffle train has trained can be exported.
    assert [command for command, takes in taking.items() if not takes] == ["export"]
    assert len(taking) > 8


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
