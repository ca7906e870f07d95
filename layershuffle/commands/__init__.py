"""The ``layershuffle`` command. It finds the subcommand; each is a module of this package.

Only the module of the command that is typed is imported. Once it has read its options it imports torch and Lightning,
which take seconds; ``layershuffle.evaluate`` and its like do so by themselves when they are first used.
"""

import os
import sys
from importlib import import_module

from layershuffle import config_files
from layershuffle.commands.errors import run
from layershuffle.commands.interrupts import exit_at_once_while_importing
from layershuffle.errors import UserError, last_line
from layershuffle.version import __version__

COMMANDS = {
    "train": "fine-tune a model in random, sequential or any other layer order",
    "replay": "show which layer of a training step was not finite first",
    "evaluate": "score a model in sequential, arbitrary, pruned and other orders",
    "predict": "name what pictures show, in one order or in many",
    "embed": "write the features of pictures to a file, in one order or in many",
    "analyse": "show what each layer does at each position",
    "similarity": "compare the activations after every two layers",
    "linear-probe": "train a linear classifier on the features of a frozen model",
    "depth": "measure accuracy and time against the number of layers run",
    "search": "find a good order on validation images",
    "prune": "find which layers to keep, and in which order",
    "merge": "merge models layer by layer",
    "export": "write a model for timm, torch.export or ONNX",
    "push": "upload an exported folder to the Hugging Face hub",
    "serve": "serve a model whose layers are spread over nodes",
    "simulate": "simulate layers on many nodes that come and go",
    "show-data": "draw training images as the model sees them",
    "pack": "resize and crop the images of class folders once",
    "experiment": "train and evaluate everything that an experiment lacks",
    "report": "make a page of tables and figures from results files",
    "check-gpu": "check what this machine's GPU computes, and how fast",
    "list": "show the models, data sets, methods, protocols and orders",
}
"""What each command does. Its name is also that of its module, which has underscores for dashes."""


def main(args: list[str] | None = None) -> None:
    """Run the command that ``args`` name, by default the arguments of the process."""
    words = sys.argv[1:] if args is None else args
    if "_ARGCOMPLETE" in os.environ:
        words = _complete()
    if not words:
        words = ["--help"]
    exit_at_once_while_importing()
    run(lambda: _run(*words))


def _run(name: str, *args: str) -> None:
    """Run the command ``name``, or show the help or the version."""
    if name in ("-h", "--help"):
        print(_help())
        return
    if name == "--version":
        print(f"layershuffle {__version__}")
        return
    if name == "--import":
        _import_and_run(*args)
        return
    if name not in COMMANDS:
        choice = ", ".join(COMMANDS)
        raise UserError(f"there is no command {name}{config_files.nearest(name, COMMANDS)}: choose from {choice}")

    name = name.replace("-", "_")
    module = import_module(f"layershuffle.commands.{name}")
    command = getattr(module, f"{name}_command")
    # Not list(args): once the module of `layershuffle list` is imported, `list` is that module here.
    command([*args])


def _import_and_run(module: str = "", *words: str) -> None:
    """Import a module of the user's own, such as one with a family of backbones, and run the rest of the command."""
    if not module or not words:
        raise UserError("--import takes a module, and a command after it: layershuffle --import my_backbones train ...")
    try:
        import_module(module)
    except ImportError as error:
        raise UserError(f"--import {module}: {last_line(error)}") from error
    _run(*words)


def _help() -> str:
    """What ``layershuffle --help`` prints: a line for each command."""
    lines = ["usage: layershuffle COMMAND ...", "", "Vision transformers whose layers run in any order.", ""]
    for command, summary in COMMANDS.items():
        lines.append(f"  {command:13}{summary}")
    lines += ["", "layershuffle COMMAND --help explains the options of a command."]
    lines += ["layershuffle --import MODULE COMMAND ... first imports a module of your own."]
    lines += ["An example: layershuffle train mini_glyphs glyphs layershuffle cpu mini"]
    return "\n".join(lines)


def _complete() -> list[str]:
    """Complete a word for the shell, and exit: eval "$(register-python-argcomplete layershuffle)".

    Commands and the names of configs are completed without importing a command. If an option is to be completed, this
    returns the words of the command that does so.
    """
    import argparse

    import argcomplete

    # The shell says how many words come before the arguments, and how long the line is up to the cursor.
    start = int(os.environ["_ARGCOMPLETE"])
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    words = line.split(" ")[start:]
    # Only the command's own parser knows its options. For it, the command is one more word before the arguments.
    if words[0] in COMMANDS and any(word.startswith("-") for word in words):
        os.environ["_ARGCOMPLETE"] = str(start + 1)
        return words

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("command", choices=COMMANDS)
    names = parser.add_argument("names", nargs="*")
    names.completer = lambda **_: {path.stem for path in config_files.known().values()}  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)
    raise SystemExit
