"""The parser of every command: configs by name, both spellings of flags, and errors of one sentence."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from layershuffle.commands.errors import user_error
from layershuffle.config_files import find
from layershuffle.errors import UserError
from layershuffle.files import read_yaml


class Parser(LightningArgumentParser):
    """LightningCLI's parser, with more ways to say the same and shorter errors.

    - Words before the first flag are configs, found by name: ``vit_b16`` is ``--config configs/model/vit_b16.yaml``.
      They come after the positional arguments, such as the checkpoint, where a command has any.
    - ``--batch-size`` is ``--batch_size``, and so for every option.
    - Keys and tokens are refused, because configs are saved and logged.
    - What ``dump`` writes begins with the command line as a comment.
    """

    def parse_args(self, args: Any = None, *rest: Any, **kwargs: Any) -> Any:
        """Parse a command line, by default that of the process."""
        args = sys.argv[1:] if args is None else list(args)
        self.dump_header = [shlex.join([*str(self.prog).split(), *args]).replace("\n", " ")]
        args = self.expanded(args)
        for path in option_values(args, "--config"):
            if Path(path).is_file():  # else the parser says it better
                read_yaml(path)
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
        return [*args[: min(positional, words)], *configs, *args[words:]]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UserError; argparse and jsonargparse call this for every fault in arguments and configs."""
        if cause := user_error(ex):
            raise cause
        message = _ALTERNATIVES.sub(lambda found: f"{found['errors'].strip()} (given: {found['value'][:100]})", message)
        message = re.sub(r"\n\s*- Expected a <class 'NoneType'>", "", message)
        message = re.sub(r'Parser key "([^"]+)":', r"--\1:", message)
        if "required: model.name" in message or "required: data" in message:
            message += ": name a model and a data set, as in layershuffle train vit_b16 cifar100 layershuffle gpu"
        raise UserError(f"{message} (--help lists all options)" if "unrecognized" in message else message) from ex


_ALTERNATIVES = re.compile(
    r"Does not validate against any of the Union subtypes\s+Subtypes:.*?\s+Errors:\s+-(?P<errors>.*?)\s+"
    r"Given value type:.*?\s+Given value: (?P<value>.*)",
    re.DOTALL,
)


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
