"""Completes words for the shell, with argcomplete: eval "$(register-python-argcomplete layershuffle)"."""

import argparse
import os
from collections.abc import Collection

import argcomplete

from layershuffle.config_files import OWN, PACKAGED, listed


def complete(commands: Collection[str]) -> list[str]:
    """Complete a command or the name of a config, and exit; neither needs a command to be imported.

    Returns the words of a command that is to complete its own options.
    """
    start = int(os.environ["_ARGCOMPLETE"])  # how many words come before the arguments
    words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")[start:]
    if words[0] in commands and any(word.startswith("-") for word in words):
        os.environ["_ARGCOMPLETE"] = str(start + 1)
        return words
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("command", choices=commands)
    names = sorted({full.rpartition("/")[2] for full in listed(OWN) | listed(PACKAGED)})
    parser.add_argument("names", nargs="*").completer = lambda **_: names  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)
    raise SystemExit
