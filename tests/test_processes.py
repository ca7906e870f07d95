"""Child processes: what their logs hold, how they are ended, and what is said of those that fail."""

import os
import signal
import sys
import time

import pytest

from layershuffle.processes import Child, last_line_of, sigterm_as_interrupt


def python(code):
    """The command that runs code in another process."""
    return [sys.executable, "-c", code]


def test_the_log_is_appended_to(tmp_path):
    log = tmp_path / "folder" / "log.txt"
    for text in ("one", "two"):
        code = f"import sys; print('{text}'); print('beside', file=sys.stderr)"
        child = Child(python(code), log)
        assert child.wait() == child.exit_code == 0
    assert sorted(log.read_text().split()) == ["beside", "beside", "one", "two"]


def test_the_environment_is_as_it_is_given(tmp_path):
    child = Child(python("import os; print(os.environ['COLOUR'])"), tmp_path / "log.txt", {"COLOUR": "blue"})
    assert child.wait() == 0
    assert last_line_of(child.log) == "blue"


@pytest.mark.parametrize(
    ("code", "exit_code", "failure"),
    [
        ("import sys; print('first'); print('error: no data', file=sys.stderr); print(); sys.exit(1)", 1, "no data"),
        ("import sys; print('what happened'); sys.exit(3)", 3, "its process ended with the code 3, see LOG: what happ"),
        ("import sys; sys.exit(3)", 3, "its process ended with the code 3, see LOG: it is empty"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, "its process ended with SIGKILL, see LOG"),
    ],
)
def test_what_is_said_of_a_failure(tmp_path, code, exit_code, failure):
    child = Child(python(code), tmp_path / "log.txt")
    assert child.wait() == exit_code
    assert child.failure().startswith(failure.replace("LOG", str(child.log)))


def test_waiting_for_some_time(tmp_path):
    child = Child(python("import time; time.sleep(60)"), tmp_path / "log.txt")
    assert child.wait(0.1) is None
    assert child.exit_code is None
    child.terminate()
    assert child.wait() == -signal.SIGTERM


def test_killing_ends_the_children_of_a_child_too(tmp_path):
    code = "import os, time; os.fork(); print('ready', flush=True); time.sleep(60)"
    child = Child(python(code), tmp_path / "log.txt", own_group=True)
    while child.log.read_text().count("ready") < 2:
        time.sleep(0.05)
    child.kill()
    assert child.exit_code == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)


def test_sigterm_acts_as_ctrl_c():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), sigterm_as_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
