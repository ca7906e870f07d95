"""Checks that the package computes what it should on this machine's GPU, and how fast."""

import fnmatch
import sys
from pathlib import Path

import torch
from rich.console import Console

from layershuffle.commands import main
from layershuffle.commands.parser import Parser
from layershuffle.errors import UserError
from layershuffle.files import read_json
from layershuffle.gpu_check import machine, runner
from layershuffle.gpu_check.checks import CHECKS, PARTS, Setting

DEVICES = {"cuda": torch.device("cuda", 0), "cpu": torch.device("cpu")}
TIMES = {"cuda": 1, "cpu": 4}
"""How many times as long the checks may take on a device as on an H100."""


def check_gpu_command(args: list[str] | None = None) -> None:
    """Make the checks that ``args`` ask for, by default those of the process; raises UserError if one fails."""
    parser = Parser(
        prog="layershuffle check-gpu",
        description="Check on this machine's GPU that the package computes what it should, and how fast. Each check "
        f"runs in a process of its own. They are: {', '.join(CHECKS)}.",
    )
    option = parser.add_argument
    option("--quick", action="store_true", help="only the checks that take seconds, in 3 minutes")
    option(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help=f"just these checks, or parts: {', '.join(PARTS)}"
    )
    option("--skip", nargs="+", default=[], metavar="PATTERN", help="leave these checks or parts out")
    option("--device", choices=[*DEVICES], default="cuda", help="cpu: try the command, with smaller models")
    option("--output", type=Path, default=Path("gpu_check"), help="a folder for the page, the JSON and the logs")
    option("--pretrained", type=str | None, help="a file with timm's weights of ViT-B/16, for the fine-tuning")
    option(
        "--minutes",
        type=float | None,
        help="how long all may take together (default: 20, or 3 with --quick; 4 times that on a CPU)",
    )
    option("--resume", action="store_true", help="keep what the page in --output says of checks that have passed")
    option("--check", choices=[*CHECKS], help="make this one check, in this process, and write what it found as JSON")
    args = sys.argv[1:] if args is None else args
    config = parser.parse_args(args)
    if config.pretrained and not Path(config.pretrained).is_file():
        raise UserError(f"there is no file {config.pretrained}")
    if config.check:
        setting = Setting(DEVICES[config.device], main, config.quick, config.pretrained)
        runner.make(CHECKS[config.check], setting, config.output / f"{config.check}.json")
        return
    for pattern in (*config.only, *config.skip):
        if not any(_matches(name, [pattern]) for name in CHECKS):
            raise UserError(f"no check or part is called {pattern}: choose from {', '.join([*PARTS, *CHECKS])}")
    times = TIMES[config.device]
    limits = {name: times * (check.quick if config.quick else check.seconds) for name, check in CHECKS.items()}
    names = [name for name in CHECKS if _matches(name, config.only) and limits[name]]
    if config.device == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise UserError(
            f"torch {torch.__version__}, {built}, finds no GPU here: see what nvidia-smi says, or try the command with "
            "--device cpu"
        )
    about, earlier = machine.describe(), config.output / "gpu_check.json"
    chosen = {
        name: dict(runner.LATER, figure="--skip") if _matches(name, config.skip) else limits[name] for name in names
    }
    if config.resume and earlier.is_file():
        before = read_json(earlier)
        if any(before["machine"][key] != about[key] for key in about if key != "other processes on the GPUs"):
            raise UserError(f"{earlier} is of another machine or other versions: leave out --resume")
        chosen |= {
            name: found
            for name, found in before["checks"].items()
            if found["state"] in ("passed", "missed") and name in CHECKS
        }
    again = [sys.executable, "-m", "layershuffle", "check-gpu", *args, "--check"]
    results = runner.run(chosen, config.output, about, config.minutes or times * (3 if config.quick else 20), again)
    Console().print(runner.table(results))
    print(f"{runner.summary(results)}; page: {config.output / 'gpu_check.md'}")
    if failed := [name for name, result in results.items() if result["state"] == "failed"]:
        raise UserError(f"{', '.join(failed)} failed: {config.output / 'logs'} says what happened")


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(word, pattern) for word in (name, CHECKS[name].part) for pattern in patterns)
