"""What a command writes to stderr: log lines of the package, and which warnings of the libraries."""

import logging
import sys
import warnings
from types import SimpleNamespace

import pytest

from layershuffle.commands.logs import set_up_logging

LOGGER = logging.getLogger("layershuffle.somewhere")


def test_lines_go_to_stderr_once_and_warnings_say_so(capsys):
    set_up_logging()
    set_up_logging()
    LOGGER.debug("hidden")
    LOGGER.info("plain")
    LOGGER.warning("serious")
    assert capsys.readouterr() == ("", "plain\nwarning: serious\n")


@pytest.mark.parametrize(("rank", "lines"), [(0, "plain\nwarning: serious\n"), (1, "warning: serious\n")])
def test_of_several_processes_the_first_shows_what_is_no_warning(capsys, monkeypatch, rank, lines):
    set_up_logging()
    rank_zero = SimpleNamespace(rank_zero_only=SimpleNamespace(rank=rank))
    monkeypatch.setitem(sys.modules, "lightning.fabric.utilities.rank_zero", rank_zero)
    LOGGER.info("plain")
    LOGGER.warning("serious")
    assert capsys.readouterr().err == lines


def test_a_warning_is_silenced_by_its_module_and_category_too():
    message = "The dirpath has changed from 'a' to 'b'"
    model_checkpoint = "lightning.pytorch.callbacks.model_checkpoint"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        set_up_logging()
        for category, module in (
            (UserWarning, model_checkpoint),
            (UserWarning, "elsewhere"),
            (RuntimeWarning, model_checkpoint),
        ):
            warnings.warn_explicit(message, category, "file.py", 1, module)
    assert [warning.category for warning in warned] == [UserWarning, RuntimeWarning]
