"""Checks in processes of their own: what is said of those that hang, crash or are interrupted, and the page."""

import json
import os
import sys

import pytest
import torch
from helpers import fails

from layershuffle.commands.check_gpu import check_gpu_command
from layershuffle.errors import UserError
from layershuffle.gpu_check import machine, runner
from layershuffle.gpu_check.checks import CHECKS, CannotCheckError, Check, Outcome, Setting, WrongResultError
from layershuffle.gpu_check.result import CheckResult, make

ABOUT = {"torch": "2", "triton": "3", "GPUs": [], "other processes on the GPUs": []}
PROGRAM = """
import json, os, signal, sys, time
folder, name = sys.argv[1:]
if name == "hangs":
    os.fork()  # its child must not outlive it
    open(f"{folder}/{os.getpid()}.pid", "w").close()
    time.sleep(60)
if name == "is-killed":
    os.kill(os.getpid(), signal.SIGKILL)
if name == "exits":
    print("what happened")
    sys.exit(3)
if name == "interrupts":
    os.kill(os.getppid(), signal.SIGTERM)  # a scheduler's; it acts as Ctrl-C does
    time.sleep(60)
state = "missed" if name == "misses" else "passed"
with open(f"{folder}/{name}.json", "w") as file:
    json.dump({"state": state, "figure": f"{name} | found", "details": [1], "device": "H100"}, file)
"""
"""Stands in for the process of a check, and behaves as the check is called."""


@pytest.fixture
def checks(monkeypatch):
    """Replaces the checks by some that behave as they are called, and returns their limits in seconds."""

    def replace(*names):
        for name in [*CHECKS]:
            monkeypatch.delitem(CHECKS, name)
        seconds = 2
        for name in names:
            quick_seconds = 2 if name == "passes" else 0  # 0: it is no quick check
            check = Check(name, "correct", "What it means.", print, seconds, quick_seconds)
            monkeypatch.setitem(CHECKS, name, check)
        return dict.fromkeys(names, seconds)

    return replace


def run(limits, folder, minutes=5.0, results=None):
    """Run checks in processes of PROGRAM; returns their results by name."""
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    return runner.run_all(limits, results or {}, folder, ABOUT, minutes, command)


def test_one_that_hangs_or_crashes_ends_no_other(tmp_path, checks, capsys):
    results = run(checks("hangs", "is-killed", "exits", "misses", "passes"), tmp_path)

    assert {name: result.state for name, result in results.items()} == {
        "hangs": "failed",
        "is-killed": "failed",
        "exits": "failed",
        "misses": "missed",
        "passes": "passed",
    }
    assert results["hangs"].figure == f"it took longer than 2 s, see {tmp_path}/logs/hangs.txt"
    assert results["is-killed"].figure.startswith("its process ended with SIGKILL, see ")
    assert results["exits"].figure.startswith("its process ended with the code 3, see ")
    assert (tmp_path / "logs/exits.txt").read_text() == "what happened\n"
    assert "likely reason: not the power limit" in results["misses"].figure

    # The process that hung is gone, and so is its child. Both were in the process group that has the first one's id.
    pid_files = list(tmp_path.glob("*.pid"))
    assert pid_files
    for pid_file in pid_files:
        with pytest.raises(ProcessLookupError):
            os.killpg(int(pid_file.stem), 0)

    content = json.loads((tmp_path / "gpu_check.json").read_text())
    assert content["device"] == "H100"
    assert {name: CheckResult.from_json(result) for name, result in content["checks"].items()} == results

    page = (tmp_path / "gpu_check.md").read_text()
    assert "5 checks: 1 passed, 1 missed, 3 failed, on 20" in page
    assert "| correct | passes | passed | passes \\| found | What it means. |" in page
    assert "hangs: failed" in capsys.readouterr().err


def test_the_page_of_an_interrupted_run_has_what_there_is(tmp_path, checks):
    with pytest.raises(KeyboardInterrupt):
        run(checks("passes", "interrupts", "exits"), tmp_path)

    results = json.loads((tmp_path / "gpu_check.json").read_text())["checks"]
    assert [result["state"] for result in results.values()] == ["passed", "left out", "left out"]
    assert results["exits"]["figure"] == "not reached: --resume makes it"


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path, checks):
    minutes = 1.5 / 60  # less than the 2 seconds that a check may take
    results = run(checks("hangs", "passes"), tmp_path, minutes)
    assert {result.figure for result in results.values()} == {"not reached: --resume makes it"}


def test_earlier_results_are_kept(tmp_path, checks):
    earlier = CheckResult("passed", "before", seconds=1.0)
    limits = checks("exits", "passes")
    del limits["exits"]

    results = run(limits, tmp_path, results={"exits": earlier})

    assert results["exits"] == earlier
    assert results["passes"].state == "passed"


# --- The command --------------------------------------------------------------------------------------------


def raises(error):
    def run(setting):
        raise error

    return run


@pytest.mark.parametrize(
    ("what", "state", "figure"),
    [
        (lambda setting: Outcome("42"), "passed", "42"),
        (lambda setting: Outcome("42", "too slow"), "missed", "42; missed: too slow"),
        (raises(WrongResultError("they differ")), "failed", "they differ"),
        (raises(RuntimeError("CUDA error: an illegal access\nCompile with")), "failed", "RuntimeError: CUDA error: an"),
        (raises(UserError("no data")), "failed", "no data"),
        (raises(CannotCheckError("no checkout")), "left out", "no checkout"),
    ],
)
def test_what_a_check_leads_to(tmp_path, monkeypatch, what, state, figure):
    monkeypatch.setitem(CHECKS, "logits", Check("logits", "correct", "What it means.", what, 9))

    check_gpu_command(["--accelerator=cpu", "--check=logits", f"--folder={tmp_path}"])

    result = json.loads((tmp_path / "logits.json").read_text())
    assert result["state"] == state
    assert result["figure"].startswith(figure)


def test_only_skip_resume_and_the_exit_code(tmp_path, monkeypatch, capsys, checks):
    checks("passes", "exits")
    run_all = runner.run_all
    commands = []
    time_limits = []

    def run_stand_ins(limits, results, folder, about, minutes, command):
        commands.append(command)
        time_limits.append(minutes)
        return run_all(limits, results, folder, about, minutes, [sys.executable, "-c", PROGRAM, str(folder)])

    def results():
        return json.loads((tmp_path / "gpu_check.json").read_text())["checks"]

    monkeypatch.setattr(runner, "run_all", run_stand_ins)
    options = ["--accelerator=cpu", f"--folder={tmp_path}"]

    assert "exits failed:" in fails(capsys, check_gpu_command, *options)
    _python, *command = commands[0]
    assert command == ["-m", "layershuffle", "check-gpu", *options, "--check"]

    check_gpu_command([*options, "--skip", "ex*"])
    states = {name: result["state"] for name, result in results().items()}
    assert states == {"passes": "passed", "exits": "left out"}

    # What has passed isn't made again.
    (tmp_path / "logs/passes.txt").unlink()
    assert "exits failed:" in fails(capsys, check_gpu_command, *options, "--resume")
    assert not (tmp_path / "logs/passes.txt").exists()

    monkeypatch.setattr(machine, "describe", lambda: ABOUT)
    assert "is of another machine" in fails(capsys, check_gpu_command, *options, "--resume")

    check_gpu_command([*options, "--quick"])
    assert list(results()) == ["passes"]

    # 20 minutes, or 3 for quick checks, and four times as long on a CPU.
    assert time_limits == [4 * 20, 4 * 20, 4 * 20, 4 * 3]

    assert "no check or part is called fats" in fails(capsys, check_gpu_command, *options, "--only", "fats")
    assert "there is no file no.pth" in fails(capsys, check_gpu_command, *options, "--pretrained=no.pth")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence(tmp_path, capsys):
    said = fails(capsys, check_gpu_command, f"--folder={tmp_path / 'new'}")
    assert "finds no GPU here" in said
    assert not (tmp_path / "new").exists()


def test_what_needs_a_gpu_says_so(tmp_path):
    make(CHECKS["memory"], Setting(torch.device("cpu")), tmp_path / "memory.json")
    assert json.loads((tmp_path / "memory.json").read_text())["state"] == "left out"


# --- The machine --------------------------------------------------------------------------------------------


def test_likely_reasons_of_a_slow_gpu(tmp_path, monkeypatch):
    # It prints GPUs with their power limits, and what other processes there are.
    nvidia_smi = tmp_path / "nvidia-smi"
    nvidia_smi.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        '*name*) echo "NVIDIA H100, 580.1, 81559 MiB, 350.00 W, 700.00 W";;\n'
        '*) echo "123, 512 MiB";;\n'
        "esac\n"
    )
    nvidia_smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    about = machine.describe() | {"triton": "3"}
    assert about["GPUs"][0]["driver"] == "580.1"
    reasons = machine.reasons_for_slowness(about)
    assert reasons == "the GPU is shared with 1 other process; its power limit is 350.00 W in place of 700.00 W"

    about.pop("triton")
    assert "triton" in machine.reasons_for_slowness(about)

    # Without nvidia-smi, nothing is known of other processes.
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    alone = machine.describe() | {"triton": "3"}
    assert alone["other processes on the GPUs"] == []
    assert machine.reasons_for_slowness(alone).startswith("not the power limit")
