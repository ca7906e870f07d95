"""Lines that tell how far a computation is, where there is no terminal."""

import math

import pytest

from layershuffle import progress_lines
from layershuffle.progress_lines import LineClock, ProgressLines, duration, last_progress


@pytest.fixture
def now(monkeypatch):
    """The seconds that have passed, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: now[0])
    return now


def told(caplog):
    """The lines that were logged."""
    return [record.getMessage() for record in caplog.records]


def test_the_first_line_comes_early_and_the_others_every_half_minute(now, caplog):
    caplog.set_level("INFO", "layershuffle")
    lines = ProgressLines("training", 20, "update")
    for done in range(1, 21):
        now[0] += 4
        lines.tell(done)
    assert told(caplog) == [
        "training: 2 of 20 updates, 4 s each, about 72 s left",
        "training: 10 of 20 updates, 4 s each, about 40 s left",
        "training: 18 of 20 updates, 4 s each, about 8 s left",
    ]


def test_the_first_of_slow_steps_is_told_at_once(now, caplog):
    caplog.set_level("INFO", "layershuffle")
    lines = ProgressLines("training", 703, "update", done=3)
    now[0] += 60
    lines.tell(3)  # a batch of an update that isn't complete
    now[0] += 25
    lines.tell(4)
    assert told(caplog) == ["training: 4 of 703 updates, 85 s each, about 16.5 h left"]


def test_short_computations_in_a_row_share_a_clock(now, caplog):
    caplog.set_level("INFO", "layershuffle")
    clock = LineClock()
    for length in range(1, 11):
        lines = ProgressLines(f"choosing {length} steps", 4, "pass", clock=clock)
        for done in range(1, 5):
            now[0] += 1
            lines.tell(done)
    assert [line.partition(":")[0] for line in told(caplog)] == ["choosing 2 steps", "choosing 9 steps"]


def test_without_an_end_no_time_is_left(now, caplog):
    caplog.set_level("INFO", "layershuffle")
    lines = ProgressLines("training", math.inf, "update")
    now[0] += 10
    lines.tell(1250)
    assert told(caplog) == ["training: 1,250 updates, 125 a second"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3000, "50 min"), (9000, "2.5 h")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_the_last_line_in_a_log_is_found_among_others(now, caplog, tmp_path):
    caplog.set_level("INFO", "layershuffle")
    log = tmp_path / "log.txt"
    log.write_text("plan: 703 updates, 1 epoch, batches of 64 images\n")
    assert last_progress(log) is None
    lines = ProgressLines("evaluating last", 120, "forward pass")
    for done in (10, 30):
        now[0] += 40
        lines.tell(done)
    before = "x" * 100_000
    after = ["epoch  train/loss", "    1      1.2345", ""]
    log.write_text("\n".join([before, *told(caplog), *after]))
    assert last_progress(log) == told(caplog)[-1]
