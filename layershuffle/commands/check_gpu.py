"""Checks that the package computes what it should on this machine's GPU, and how fast."""

import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat
from rich.console import Console

from layershuffle.commands.interrupts import on_interrupt
from layershuffle.commands.parser import Parser
from layershuffle.errors import UserError
from layershuffle.gpu_check import machine, page, runner
from layershuffle.gpu_check.checks import CHECKS, PARTS, Setting
from layershuffle.gpu_check.result import CheckResult, make
from layershuffle.options import add_options

MINUTES = 20
"""How long all checks may take together by default."""
QUICK_MINUTES = 3
"""The same with ``--quick``."""
CPU_FACTOR = 4
"""How many times as long the checks may take on a CPU as on an H100."""


def check_gpu_command(args: list[str] | None = None) -> None:
    """Make the checks that ``args`` name, by default those of the process; raises UserError if one fails."""
    args = sys.argv[1:] if args is None else args
    config = _parser().parse_args(args)
    if config.pretrained and not Path(config.pretrained).is_file():
        raise UserError(f"there is no file {config.pretrained}")
    setting = Setting(_device(config.accelerator), config.quick, config.pretrained)
    # The runner starts this command once more for each check, in a process of its own.
    if config.check:
        make(CHECKS[config.check], setting, config.folder / f"{config.check}.json")
        return

    # Which checks are asked for, and how long each and all of them may take.
    _require_known([*config.only, *config.skip])
    factor = 1 if setting.is_gpu else CPU_FACTOR
    limits = _limits(config.only, config.quick, factor)
    default_minutes = QUICK_MINUTES if config.quick else MINUTES
    minutes = config.minutes or factor * default_minutes
    about = machine.describe()

    # A check that is skipped is on the page too, but a result that --resume keeps is better than none.
    results = _earlier_results(config, about)
    for name in limits:
        if name not in results and _matches(name, config.skip):
            results[name] = CheckResult("left out", "--skip")
    to_make = {name: limit for name, limit in limits.items() if name not in results}

    # The runner adds the name of a check to the command.
    command = [sys.executable, "-m", "layershuffle", "check-gpu", *args, "--check"]
    with on_interrupt("the page has the checks that were made, and --resume makes the others"):
        results = runner.run_all(to_make, results, config.folder, about, minutes, command)

    Console().print(page.table(results))
    print(f"{page.summary(results)}; page: {config.folder / page.PAGE}")
    failed = [name for name, check_result in results.items() if check_result.state == "failed"]
    if failed:
        raise UserError(f"{', '.join(failed)} failed: {config.folder / 'logs'} says what happened")


def _parser() -> Parser:
    parser = Parser(
        prog="layershuffle check-gpu",
        description="Check on this machine's GPU that the package computes correctly, and how fast. Each check "
        f"runs in a process of its own. They are: {', '.join(CHECKS)}. "
        f"Patterns may also name parts: {', '.join(PARTS)}. The fine-tuning begins with the weights of --pretrained, "
        "or else trains them first.",
    )
    option = parser.add_argument
    option("--quick", type=bool, default=False, help="Run only the checks that take seconds, 3 minutes in all.")
    add_options(parser, only=("*",))
    option("--skip", nargs="+", default=[], metavar="PATTERN", help="Checks or parts to leave out.")
    add_options(parser, "resume", accelerator="gpu", folder=Path("gpu_check"))
    add_options(parser, "pretrained")
    option(
        "--minutes",
        type=PositiveFloat | None,
        metavar="N",
        help="Minutes that all checks may take together (default: 20, or 3 with --quick; 4 times that on a CPU).",
    )
    option("--check", choices=[*CHECKS], help="Make this one check, in this process, and write its result as JSON.")
    return parser


def _device(accelerator: str) -> torch.device:
    """The device to check; raises UserError if it isn't there."""
    if accelerator == "cpu":
        return torch.device("cpu")
    if accelerator == "mps":
        raise UserError("check-gpu knows NVIDIA GPUs alone: try the command with --accelerator cpu")
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise UserError(
            f"torch {torch.__version__}, {built}, finds no GPU here: see what nvidia-smi says, or try the command with "
            "--accelerator cpu"
        )
    return torch.device("cuda", 0)


def _limits(only: Sequence[str], quick: bool, factor: int) -> dict[str, float]:
    """The checks to make, and how many seconds each may take.

    A check that hangs, as a broken driver makes it, must not keep the others from being made.

    Args:
        only: patterns of the checks to make.
        quick: whether to make the quick ones alone.
        factor: how many times as long as on an H100 they may take.
    """
    limits: dict[str, float] = {}
    for name, check in CHECKS.items():
        # A check that is not quick has 0 quick seconds, and is left out.
        seconds_on_gpu = check.quick_seconds if quick else check.seconds
        if seconds_on_gpu and _matches(name, only):
            limits[name] = factor * seconds_on_gpu
    return limits


def _earlier_results(config: Namespace, about: dict[str, object]) -> dict[str, CheckResult]:
    """With ``--resume``, the results that the page in the folder has; those that failed are made again."""
    path = config.folder / page.JSON
    if not config.resume or not path.is_file():
        return {}
    earlier_about, earlier = page.read(config.folder)
    if not machine.is_same_machine(about, earlier_about):
        raise UserError(f"{path} is of another machine or other versions: leave out --resume")
    kept = {}
    for name, result in earlier.items():
        # The user may have edited the file, or have removed a check of their own.
        is_known = name in CHECKS
        has_result = result.state in ("passed", "missed")
        if is_known and has_result:
            kept[name] = result
    return kept


def _require_known(patterns: Sequence[str]) -> None:
    """Raise UserError if a pattern matches nothing, which is likely a typing error."""
    for pattern in patterns:
        if not any(_matches(name, [pattern]) for name in CHECKS):
            raise UserError(f"no check or part is called {pattern}: choose from {', '.join([*PARTS, *CHECKS])}")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns matches the name of a check or of its part."""
    part = CHECKS[name].part
    return any(fnmatch.fnmatch(name, pattern) or fnmatch.fnmatch(part, pattern) for pattern in patterns)
