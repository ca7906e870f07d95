"""Takes command lines apart into words, options and their values, before it is known which options there are."""

import re
from collections.abc import Sequence
from itertools import pairwise, takewhile

OPTION = re.compile("--?[a-z]")
"""How an option begins. A value may begin with a dash too, but a negative number has no letter after it."""


def words_before_options(args: Sequence[str]) -> list[str]:
    """The positional arguments of a command line, and the configs after them."""
    return list(takewhile(lambda arg: not arg.startswith("-"), args))


def option_values(args: Sequence[str], name: str) -> list[str]:
    """The values given for the option ``name``, as ``name value`` or ``name=value``."""
    spaced = [value for arg, value in pairwise(args) if arg == name]
    return spaced + [arg.partition("=")[2] for arg in args if arg.startswith(f"{name}=")]


def with_underscores(arg: str) -> str:
    """``--batch-size=3`` as ``--batch_size=3``; values and dashes before an option stay."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.removeprefix("--").partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def split_options(args: Sequence[str]) -> list[list[str]]:
    """The options, each as a list of its name and its values: ``[["--order", "3 1 2", "0 1 2"], ["--seed=1"]]``."""
    options: list[list[str]] = []
    for arg in args:
        if options and not OPTION.match(arg):
            options[-1].append(arg)
        else:
            options.append([arg])
    return options


def join_options(options: Sequence[list[str]]) -> list[str]:
    """The command line of options that ``split_options`` took apart."""
    return [arg for option in options for arg in option]
