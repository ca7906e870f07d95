"""What commands say on stderr: wrapped at words on a terminal, and on one line elsewhere."""

import fcntl
import os
import pty
import struct
import sys
import termios

import pytest

from layershuffle.commands.errors import run
from layershuffle.commands.terminal import wrapped_on_terminal
from layershuffle.errors import UserError

TEXT = (
    "error: there is no config named mini: "
    + "choose one that is long-winded " * 4
    + "/a/folder-with-a-name/"
    + "x" * 70
)


@pytest.fixture
def terminal(monkeypatch):
    """A function that puts a terminal of so many columns in the place of stderr; 0 is a terminal of unknown width."""
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb"), os.fdopen(follower, "w") as stderr:

        def set_columns(columns):
            fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
            monkeypatch.setattr(sys, "stderr", stderr)

        yield set_columns


def test_a_terminal_of_80_columns_shows_whole_words(terminal):
    terminal(80)
    lines = wrapped_on_terminal(TEXT).split("\n")
    assert " ".join(lines).split() == TEXT.split()
    # The path at the end is a single word of more than 80 letters.
    assert [len(line) <= 80 for line in lines] == [True, True, True, False]


def test_what_is_indented_stays_so(terminal):
    terminal(40)
    lines = wrapped_on_terminal("error: short\n  " + "word " * 20).split("\n")
    assert lines[0] == "error: short"
    assert len(lines) == 4
    assert all(line.startswith("  word") for line in lines[1:])


@pytest.mark.parametrize("columns", [0, 3, 500])
def test_no_width_and_a_large_one_change_nothing(terminal, columns):
    terminal(columns)
    assert wrapped_on_terminal(TEXT) == TEXT


def test_without_a_terminal_an_error_is_one_line():
    assert wrapped_on_terminal(TEXT) == TEXT


def test_an_error_of_a_command_is_wrapped(terminal):
    def command():
        raise UserError(TEXT)

    terminal(60)
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert len(str(stop.value.code).splitlines()) > 2
