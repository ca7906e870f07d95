"""What a command that Ctrl-C interrupts says is left of its work."""

import pytest

from layershuffle import files
from layershuffle.commands.errors import run
from layershuffle.commands.interrupts import CODE, on_interrupt


@pytest.fixture(autouse=True)
def nothing_written(monkeypatch):
    monkeypatch.setattr(files, "written", [])


def last_words(capsys, command):
    """What ``command`` says, which must be interrupted."""
    with pytest.raises(SystemExit) as stop:
        run(command)
    assert stop.value.code == CODE
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
            for content in ("old", "new"):
                files.write_whole(tmp_path / f"{number}.json", content)
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
