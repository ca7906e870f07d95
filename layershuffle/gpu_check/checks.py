"""What a check is, what it is told and what it returns; the list of all of them."""

import csv
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from layershuffle.api.train import TrainedRun, train

PARTS = ("correct", "fast", "real")
"""Does it compute what it should, is it as fast as it should be, and does a fine-tuning that means something work?"""


@dataclass(frozen=True)
class Setting:
    """What a check is told.

    Attributes:
        device: where it runs. On a CPU the models are smaller.
        quick: whether it should take seconds rather than minutes.
        pretrained: a file with weights of ViT-B/16, if there is one.
    """

    device: torch.device
    quick: bool = False
    pretrained: str | None = None

    @property
    def is_gpu(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def trainer(self) -> str:
        """The name of the trainer's config for this device."""
        return "gpu" if self.is_gpu else "cpu"


@dataclass(frozen=True)
class Outcome:
    """What a check that didn't fail has found out.

    Attributes:
        figure: its result, in a few words.
        missed: the goal that was not reached, if there is one.
        details: all its numbers, in plain values.
    """

    figure: str
    missed: str = ""
    details: Any = field(default_factory=dict)


class CannotCheckError(Exception):
    """A check can't be made here; the message says why."""


class WrongResultError(Exception):
    """A check has found something wrong; the message says what."""


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: what the command line and the page call it.
        part: one of PARTS.
        meaning: what it means if it passes.
        run: makes it; raises an exception if it fails.
        seconds: how long it may take; twice what it should take on an H100.
        quick_seconds: the same with ``--quick``; 0 if that leaves it out.
        needs_gpu: whether it says nothing about a CPU.
    """

    name: str
    part: str
    meaning: str
    run: Callable[[Setting], Outcome]
    seconds: int
    quick_seconds: int = 0
    needs_gpu: bool = False


CHECKS: dict[str, Check] = {}
"""All checks by name, in the sequence in which they are made."""


def check(name: str, part: str, meaning: str, **limits: Any) -> Callable[[Callable[[Setting], Outcome]], Any]:
    """Register a function as a check: the decorator enters it in CHECKS, with these attributes of ``Check``."""

    def register(run: Callable[[Setting], Outcome]) -> Callable[[Setting], Outcome]:
        CHECKS[name] = Check(name, part, meaning, run, **limits)
        return run

    return register


def require(condition: Any, complaint: str) -> None:
    """Raise WrongResultError with a complaint unless the condition holds. Unlike ``assert``, it also works under -O."""
    if not condition:
        raise WrongResultError(complaint)


def new_folder() -> Path:
    """An empty folder for files that are not kept: the runner removes it with all that a check leaves."""
    return Path(tempfile.mkdtemp())


def train_small(setting: Setting, method: str = "layershuffle", **arguments: Any) -> TrainedRun:
    """Train a small model on a few glyphs.

    Args:
        setting: the device.
        method: the name of the method's config.
        arguments: further arguments of ``layershuffle.api.train.train``; ``options`` win over those that make the
            training small.
    """
    options: dict[str, Any] = {
        "model.pretrained": False,
        "model.schedule.warmup_steps": 5,
        "data.classes": 10,
        "data.test_images_per_class": 10,
        "trainer.enable_progress_bar": False,
    }
    # What the check asks for replaces what is the same for all checks.
    options.update(arguments.pop("options", {}))
    arguments.setdefault("trainer", setting.trainer)
    arguments.setdefault("folder", new_folder() / "run")
    return train("mini_glyphs", "glyphs", method, optimizer="mini", options=options, **arguments)


def logged(folder: Path, name: str) -> list[float]:
    """The values of a metric that the run in a folder has logged, in sequence."""
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    # Each row has the metrics that were logged together, and the others are empty.
    return [float(row[name]) for row in rows if row.get(name)]


def environment() -> Mapping[str, str]:
    """The variables of this process, for another one that is to import the same package.

    From a checkout that isn't installed, the package is only found if its folder is in PYTHONPATH.
    """
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}
