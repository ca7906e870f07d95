"""How far a long computation is, where there is no terminal."""

import pytest

from layershuffle.api import progress
from layershuffle.api.progress import progress_bar


@pytest.fixture
def clock(monkeypatch):
    """The seconds that have passed, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress._LogLines, "logged_at", None)
    return now


def test_a_line_is_logged_every_half_minute_across_short_computations(clock, caplog):
    with caplog.at_level("INFO", "layershuffle"):
        for length in (3, 2):
            with progress_bar(f"choosing {length} steps", 10, "run") as advance:
                for _ in range(10):
                    clock[0] += 4
                    advance()
    assert [record.getMessage() for record in caplog.records] == [
        "choosing 3 steps: 9 of 10 runs",
        "choosing 2 steps: 7 of 10 runs",
    ]


def test_what_is_quick_logs_nothing(clock, caplog):
    with caplog.at_level("INFO", "layershuffle"), progress_bar("timing", 20, "run") as advance:
        for _ in range(20):
            clock[0] += 1
            advance()
    assert not caplog.records
