"""What a run can do: train, evaluate, analyse and merge; and how an action is told what to do.

Actions take the arguments of their commands, and not those of the Python API. So one parser checks an experiment's
settings before anything runs and reads them when it does, options of classes such as ``data.root`` mean what they mean
on the command line, and each log begins with a command that repeats the run by hand.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from layershuffle.config_files import find
from layershuffle.errors import UserError
from layershuffle.experiments.definition import Settings


@dataclass(frozen=True)
class Action:
    """What a run can do.

    Attributes:
        perform: does it, with the arguments of a command line.
        parse: only parses such arguments, to find mistakes before anything runs; raises UserError if one is unknown or
            wrong. Its second argument is the data set that the model will have been trained on, as a class and its
            arguments, or None: the command line may have options of it without naming it.
    """

    perform: Callable[[list[str]], Any]
    parse: Callable[[list[str], Any], Namespace]


Actions = Mapping[str, Action]
"""Actions by the names that tasks have for them. The commands are passed in like this because a room below them can't
import them."""


def as_arguments(models: Sequence[str], settings: Settings) -> list[str]:
    """Models and settings as the arguments of an action.

    Raises:
        UserError: if there is no such config.
    """
    arguments = [*models, *(f"--config={_config_path(name)}" for name in settings.configs)]
    for name, value in settings.options.items():
        if isinstance(value, list) and "." not in name:
            # A list of a command's own option is written as several words, as in --depths 3 6. An argument of a class
            # has a dot in its name, and jsonargparse takes its list as one word.
            arguments += [f"--{name}", *map(_text, value)]
        else:
            arguments.append(f"--{name}={_text(value)}")
    return arguments


def _text(value: Any) -> str:
    """A value as a word of a command line. jsonargparse reads words as YAML, of which JSON is a part."""
    return value if isinstance(value, str) else json.dumps(value)


def _config_path(name: str) -> Path:
    """The file of a config; raises UserError if there is none."""
    path = find(name)
    # A path that ends in .yaml is taken as it is, so that it may name nothing.
    if not path.is_file():
        raise UserError(f"there is no file {path}; the paths in an experiment start from the folder that you work in")
    return path
