"""Runs side by side on this machine: what is said of them while they last."""

import sys
from pathlib import Path

from layershuffle.experiments import local
from layershuffle.experiments.runs import Run

CHILD = """if True:
    import sys, time
    from pathlib import Path
    if sys.argv[1] == "digits/baseline/seed0":
        print("training: 3 of 9 updates, 2 a second, about 3 s left", flush=True)
    while not Path("told").exists():
        time.sleep(0.05)
"""
"""What each run does in place of training: one of them says how far it is, and all wait for a file "told"."""


class OnceClock:
    """Strikes once, when the first run has told how far it is; then the runs may end."""

    def __init__(self, first, between):
        pass

    def strikes(self):
        log = Path("runs/digits/baseline/seed0/log.txt")
        is_due = log.exists() and bool(log.read_text()) and not Path("told").exists()
        if is_due:
            Path("told").touch()
        return is_due


def test_without_a_terminal_lines_say_how_far_each_run_is(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "layershuffle")
    monkeypatch.setattr(local, "LineClock", OnceClock)
    runs = [Run("digits", "baseline", 0, tasks=()), Run("digits", "shuffled", 0, tasks=())]
    assert local.run_all(runs, Path("runs"), 2, [sys.executable, "-c", CHILD]) == 0
    assert caplog.messages[2:5] == [
        "0 of 2 runs have ended",
        "  digits/baseline/seed0: training: 3 of 9 updates, 2 a second, about 3 s left",
        "  digits/shuffled/seed0: has begun",
    ]
