"""metrics.csv by itself. test_resume.py has runs that are stopped."""

import csv

import pytest
import torch

from layershuffle import UserError
from layershuffle.training.metrics_file import MetricsFile


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def log(folder, from_step, *metrics):
    """Log the metrics, pairs of a step and its values, in a run that goes on from a step; returns the file's path.

    Without ``from_step`` the run is new.
    """
    logger = MetricsFile(str(folder), version="run", from_step=from_step)
    for step, values in metrics:
        logger.log_metrics(values, step)
        logger.save()
    logger.finalize("success")
    return folder / "run" / "metrics.csv"


def test_a_metric_that_comes_later_is_a_new_column(tmp_path):
    path = log(tmp_path, None, (0, {"b": 1.0}), (1, {"b": torch.tensor(2.0), "a": 3.0}))
    assert path.read_text().splitlines()[0] == "a,b,step"
    assert rows(path) == [{"a": "", "b": "1.0", "step": "0"}, {"a": "3.0", "b": "2.0", "step": "1"}]


def test_a_resumed_run_keeps_the_rows_of_the_steps_before(tmp_path):
    path = log(tmp_path, None, *[(step, {"loss": step / 2}) for step in range(4)])
    with path.open("a") as file:
        file.write("9.9")  # cut short by a kill

    log(tmp_path, 2, (2, {"loss": 7.0}))
    assert [(row["step"], row["loss"]) for row in rows(path)] == [("0", "0.0"), ("1", "0.5"), ("2", "7.0")]


def test_a_new_run_replaces_the_rows(tmp_path):
    log(tmp_path, None, (0, {"loss": 1.0}))
    path = log(tmp_path, None, (5, {"other": 1.0}))
    assert [row["step"] for row in rows(path)] == ["5"]


def test_a_run_that_logs_nothing_writes_nothing(tmp_path):
    assert not log(tmp_path, None).exists()


def test_a_full_disk_is_a_one_line_error_that_names_the_file(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.csv").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.csv could not be written: No space left on device; free some space"):
        log(tmp_path, None, (0, {"loss": 1.0}))
    assert not list((tmp_path / "run").iterdir())
