"""What a check has led to, as the files of ``check-gpu`` keep it."""

import json
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from layershuffle.errors import UserError
from layershuffle.files import read_json, write_whole
from layershuffle.gpu_check.checks import CannotCheckError, Check, Setting, WrongResultError
from layershuffle.hardware import device_name

State = Literal["passed", "missed", "failed", "left out"]
STATES: tuple[State, ...] = ("passed", "missed", "failed", "left out")
"""A check that has "missed" gave right results, but not as fast as it should."""


@dataclass(frozen=True)
class CheckResult:
    """What a check has led to.

    Attributes:
        state: whether it passed.
        figure: its result in a few words, or the reason.
        seconds: how long it took.
        device: the name of the GPU or the CPU; None if that isn't known.
        details: all its numbers, in plain values.
    """

    state: State
    figure: str
    seconds: float = 0.0
    device: str | None = None
    details: Any = None

    def to_json(self) -> dict[str, Any]:
        """The result in plain values, which ``from_json`` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "CheckResult":
        """The result of which ``to_json`` made ``content``; raises UserError if it is something else."""
        try:
            result = cls(**content)
        except TypeError as error:
            raise UserError(f"the result of a check is damaged: {error}") from error
        if result.state not in STATES:
            raise UserError(f"the result of a check is damaged: its state is {result.state}")
        return result


LATER = CheckResult("left out", "not reached: --resume makes it")


def make(check: Check, setting: Setting, path: Path) -> None:
    """Make a check in this process, and write the result to ``path``."""
    result = _result_of(check, setting)
    write_whole(path, json.dumps(result.to_json()))


def read(path: Path) -> CheckResult:
    """The result that ``make`` has written."""
    return CheckResult.from_json(read_json(path))


def _result_of(check: Check, setting: Setting) -> CheckResult:
    """Run a check and turn what it returns or raises into a result."""
    # The name of the device is looked up within ``try``, because a broken GPU may fail even in that.
    device = "unknown"
    try:
        device = device_name(setting.device)
        if check.needs_gpu and not setting.is_gpu:
            raise CannotCheckError("it says nothing about a CPU")
        outcome = check.run(setting)
    except CannotCheckError as reason:
        return CheckResult("left out", str(reason), device=device)
    # The messages of these errors say what is wrong. For any other error, the log should have the traceback.
    except (WrongResultError, UserError) as error:
        return CheckResult("failed", str(error), device=device)
    except Exception as error:
        traceback.print_exc()
        first_line = str(error).strip().split("\n")[0] or "see the log"
        return CheckResult("failed", f"{type(error).__name__}: {first_line}", device=device)
    if outcome.missed:
        return CheckResult(
            "missed", f"{outcome.figure}; missed: {outcome.missed}", device=device, details=outcome.details
        )
    return CheckResult("passed", outcome.figure, device=device, details=outcome.details)
