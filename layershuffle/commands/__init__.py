"""The ``layershuffle`` command. It finds the subcommand; each is a module of this package.

Only the module of the command that is asked for is imported: torch and Lightning take seconds.
"""

import os
import signal
import sys
from importlib import import_module

from layershuffle import config_files
from layershuffle.commands.errors import run
from layershuffle.version import __version__

COMMANDS = {
    "train": "fine-tune a model in random, sequential or any other layer order",
    "evaluate": "score a model in sequential, arbitrary, pruned and other orders",
    "analyse": "show what each layer does at each position",
    "similarity": "compare the activations after every two layers",
    "depth": "measure accuracy and time against the number of layers run",
    "search": "find a good order on validation images",
    "merge": "merge models layer by layer",
    "export": "write a folder for timm and the Hugging Face hub",
    "pack": "resize and crop the images of class folders once",
    "experiment": "train and evaluate everything that an experiment lacks",
    "report": "make a page of tables and figures from results files",
    "list": "show the models, data sets, methods, protocols and orders",
}
"""Each command's name, which is also its module's, and what it does."""

# `python -m layershuffle.commands.NAME` of version 0.1: while Python looks for that module, the program
# is called "-m". Start again as `python -m layershuffle NAME`.
if sys.argv[:1] == ["-m"]:
    _index = next(i for i, word in enumerate(sys.orig_argv) if "layershuffle.commands." in word)
    _words = sys.orig_argv[_index].split(".commands.")
    os.execv(sys.executable, [*sys.orig_argv[:_index], *_words, *sys.orig_argv[_index + 1 :]])


def main(args: list[str] | None = None) -> None:
    """Run the command that ``args`` name, by default the arguments of the process."""
    if "_ARGCOMPLETE" in os.environ:
        from layershuffle.commands.completion import complete

        args = complete(COMMANDS)
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: layershuffle COMMAND ...\n\nVision transformers whose layers run in any order.\n")
        print("\n".join(f"  {command:12}{does}" for command, does in COMMANDS.items()))
        print("\nlayershuffle COMMAND --help explains the options of a command.")
        print("An example: layershuffle train mini_digits digits layershuffle cpu mini")
    elif name == "--version":
        print(f"layershuffle {__version__}")
    elif name not in COMMANDS:
        known = ", ".join(COMMANDS)
        sys.exit(f"error: there is no command {name}{config_files.nearest(name, COMMANDS)}: choose from {known}")
    else:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the imports, which take seconds, without a traceback
        module = import_module(f"layershuffle.commands.{name}")
        run(lambda: getattr(module, f"{name}_command")(rest))
