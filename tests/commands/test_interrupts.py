"""What a command that Ctrl-C interrupts says is left of its work."""

import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT

from layershuffle import files
from layershuffle.commands.errors import run
from layershuffle.commands.interrupts import on_interrupt
from layershuffle.errors import INTERRUPTED_CODE


@pytest.fixture(autouse=True)
def nothing_written(monkeypatch):
    """As in a new process, in which no command has written a file yet."""
    monkeypatch.setattr(files, "written", [])


def last_words(capsys, command):
    """The line that ``command`` ends with, which must be interrupted."""
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == INTERRUPTED_CODE
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_command_that_has_written_nothing_says_so(capsys):
    def command():
        raise KeyboardInterrupt

    assert last_words(capsys, command) == "interrupted: nothing was written"


@pytest.mark.parametrize(("count", "named"), [(1, 1), (3, 3), (5, 3)])
def test_files_that_were_written_are_named(capsys, tmp_path, count, named):
    def command():
        for number in range(count):
            # A file that is written twice is named once.
            files.write_whole(tmp_path / f"{number}.json", "old")
            files.write_whole(tmp_path / f"{number}.json", "new")
        raise KeyboardInterrupt

    line = last_words(capsys, command)
    assert line.count(".json") == named
    assert ("more" in line) == (count > named)


def test_files_that_were_removed_are_not_named(capsys, tmp_path):
    def command():
        files.write_whole(tmp_path / "aside.json", "content")
        (tmp_path / "aside.json").unlink()
        raise KeyboardInterrupt

    assert last_words(capsys, command) == "interrupted: nothing was written"


def test_a_command_that_can_go_on_says_how(capsys, tmp_path):
    def command():
        with on_interrupt("the same command continues"):
            files.write_whole(tmp_path / "unfinished.json", "content")
            raise KeyboardInterrupt

    assert last_words(capsys, command) == "interrupted: the same command continues"


INTERRUPTING = """if True:
    import runpy, signal, sys

    class Interrupting:
        def find_spec(name, path=None, target=None):
            if name == {module!r}:
                signal.raise_signal(signal.SIGINT)

    sys.meta_path.insert(0, Interrupting)
"""
"""The beginning of a program in which Ctrl-C comes when a module is about to be imported."""


def console_script():
    """What the script that pip writes for the command runs."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    module, _, function = scripts["layershuffle"].partition(":")
    return f"from {module} import {function}; {function}()"


@pytest.mark.parametrize("module", ["layershuffle.orders", "yaml", "layershuffle.commands.errors"])
@pytest.mark.parametrize("door", ["python -m", "console script"])
def test_before_the_command_itself_is_imported(door, module):
    program = console_script()
    if door == "python -m":
        program = 'runpy.run_module("layershuffle", run_name="__main__")'
    code = INTERRUPTING.format(module=module) + f"    {program}"
    process = subprocess.run([sys.executable, "-c", code, "list"], capture_output=True, text=True, timeout=500)
    assert process.stderr == "interrupted: nothing was written\n"
    assert process.returncode == INTERRUPTED_CODE
