"""What a run can do: train, evaluate, analyse and merge; and how an action is told what to do."""

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
        perform: does it, with these arguments.
        parse: reads the arguments alone, with the data set (None, or a class and its arguments) that they don't have to
            name, because the model was trained on it; raises UserError if one is unknown or wrong.
    """

    perform: Callable[[list[str]], Any]
    parse: Callable[[list[str], Any], Namespace]


Actions = Mapping[str, Action]
"""Actions by the names that tasks have for them."""


def as_arguments(models: Sequence[str], settings: Settings) -> list[str]:
    """Models and settings as the arguments of an action.

    Raises:
        UserError: if there is no such config.
    """
    arguments = [*models, *(f"--config={_config_path(name)}" for name in settings.configs)]
    for name, value in settings.options.items():
        if isinstance(value, list) and "." not in name:
            # An option of a command takes several words; one of a class, such as a callback's, takes a list.
            arguments += [f"--{name}", *map(_text, value)]
        else:
            arguments.append(f"--{name}={_text(value)}")
    return arguments


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _config_path(name: str) -> Path:
    path = find(name)
    if not path.is_file():
        raise UserError(f"there is no file {path}; the paths in an experiment start from the folder that you work in")
    return path
