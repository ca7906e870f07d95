"""What a check is, what it is given and what it returns; the list of all of them."""

import csv
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

PARTS = ("correct", "fast", "real")
"""Does it compute what it should, is it as fast as it should be, and does a fine-tuning that means something work?"""


@dataclass(frozen=True)
class Setting:
    """What a check is given.

    Attributes:
        device: where it runs. On a CPU the models are smaller.
        command: runs ``layershuffle`` with these arguments in this process; ends with SystemExit if that fails.
        quick: whether it should take seconds rather than minutes.
        pretrained: a file with weights of ViT-B/16, if there is one.
    """

    device: torch.device
    command: Callable[[list[str]], Any]
    quick: bool = False
    pretrained: str | None = None

    @property
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Found:
    """What a check that didn't fail has found.

    Attributes:
        figure: its result, in a few words.
        missed: the goal that was not reached, if there is one.
        details: all its numbers, in plain values.
    """

    figure: str
    missed: str = ""
    details: Any = field(default_factory=dict)


class LeftOut(Exception):
    """A check can't be made here; the message says why."""


@dataclass(frozen=True)
class Check:
    """A check; ``run`` raises an exception if it fails.

    Attributes:
        name: what the command line and the page call it.
        part: one of PARTS.
        seconds: how long it may take; twice what it should take on an H100.
        quick: the same with ``--quick``; 0 if that leaves it out.
        gpu: whether it says nothing about a CPU.
    """

    name: str
    part: str
    run: Callable[[Setting], Found]
    seconds: int
    quick: int
    gpu: bool

    @property
    def meaning(self) -> str:
        """What it means if it passes."""
        return " ".join((self.run.__doc__ or "").split())


CHECKS: dict[str, Check] = {}
"""All checks by name, in the sequence in which they are made."""


def check(
    part: str, seconds: int, quick: int = 0, gpu: bool = False
) -> Callable[[Callable[[Setting], Found]], Callable[[Setting], Found]]:
    """Put a function in CHECKS. Its docstring is the meaning of the check."""

    def register(run: Callable[[Setting], Found]) -> Callable[[Setting], Found]:
        name = run.__name__.replace("_", "-")
        CHECKS[name] = Check(name, part, run, seconds, quick, gpu)
        return run

    return register


def require(condition: Any, complaint: str) -> None:
    """Fail with a sentence unless the condition holds."""
    if not condition:
        raise AssertionError(complaint)


def new_folder() -> Path:
    """An empty folder for files that are not kept: the runner removes it with all that a check leaves."""
    return Path(tempfile.mkdtemp())


def training(setting: Setting, *arguments: str, configs: tuple[str, ...] = ()) -> tuple[list[str], Path]:
    """The arguments that train a small model on a few glyphs, and the folder of its run."""
    root = new_folder()
    return [
        *("train", "mini_glyphs", "glyphs", "gpu" if setting.cuda else "cpu", "mini", *configs),
        *(
            "--model.pretrained=false",
            "--model.schedule.warmup_steps=5",
            "--data.classes=10",
            "--data.test_images_per_class=10",
        ),
        *(f"--trainer.default_root_dir={root}", "--trainer.enable_progress_bar=false", *arguments),
    ], root / "version_0"


def metric(run: Path, name: str) -> list[float]:
    """The values of a metric that a run has logged, in sequence."""
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def environment() -> dict[str, str]:
    """The variables of this process, for another one that is to import the same package."""
    root = str(Path(__file__).parents[2])
    return os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
