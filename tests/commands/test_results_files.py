"""What a study leaves on the terminal and on the disk."""

import re
from pathlib import Path

import pytest
from example_results import by_class, results

from layershuffle.commands.results_files import leave
from layershuffle.errors import UserError
from layershuffle.results import Results


def test_results_that_can_not_be_saved_are_printed_and_saved_elsewhere(tmp_path, monkeypatch, capsys):
    output = tmp_path / "full" / "r.json"
    save = Results.save

    def save_unless_disk_is_full(self, path):
        if path == output:
            raise UserError(f"{path} could not be written: No space left on device")
        save(self, path)

    monkeypatch.setattr(Results, "save", save_unless_disk_is_full)
    with pytest.raises(UserError, match="No space left") as error:
        leave(by_class(), output)
    assert "90.00" in capsys.readouterr().out
    # The error ends with the file that the results were saved in instead.
    elsewhere = re.search(r"\S+r\.json$", str(error.value))
    assert Results.load(Path(elsewhere[0])) == by_class()


def test_what_to_compare_with_stands_under_the_table(tmp_path, capsys):
    leave(by_class(), tmp_path / "r.json")
    printed = capsys.readouterr().out
    assert "chance 10.00%, most frequent class 50.00%" in printed
    assert "every batch" in " ".join(printed.split())

    # The note on orders that are new in every batch is only printed where there are some.
    leave(results(scores=results().of("sequential")), tmp_path / "s.json")
    assert "every batch" not in " ".join(capsys.readouterr().out.split())


def test_print_shows_what_the_command_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    leave(by_class(), tmp_path / "r.json")
    by_command = capsys.readouterr().out
    print(by_class())
    shown = capsys.readouterr().out
    assert "90.00" in shown
    assert by_command.startswith(shown)
