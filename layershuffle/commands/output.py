"""What stdout does with characters that its encoding doesn't have: a command must not fail once its work is done."""

import codecs
import io
import sys

NAME = "layershuffle"
"""The name of the error handler."""
PLAIN = {"±": "+-", "─": "-", "…": "...", "✱": "*"}
"""What stands in ASCII for the characters that our tables have."""


def print_all_characters() -> None:
    """Let stdout print names that are not UTF-8 as their bytes, and what it can't encode in plain letters."""
    codecs.register_error(NAME, _encoded)
    # A notebook or a test may have put something else in its place.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=NAME)


def _encoded(error: UnicodeError) -> tuple[bytes, int]:
    """The bytes for the part of a text that can't be encoded, and where it ends."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    encoded = b""
    for character in error.object[error.start : error.end]:
        # Python reads a byte that isn't UTF-8 as one of these characters.
        if "\udc80" <= character <= "\udcff":
            encoded += character.encode("ascii", "surrogateescape")
        else:
            encoded += PLAIN.get(character, character).encode("ascii", "backslashreplace")
    return encoded, error.end
