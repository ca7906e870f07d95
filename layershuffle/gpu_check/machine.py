"""What there is to say of a machine, and why its GPU may be slower than it should be."""

import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from layershuffle.version import __version__

FIELDS = {
    "GPU": "name",
    "driver": "driver_version",
    "memory": "memory.total",
    "power limit": "power.limit",
    "default power limit": "power.default_limit",
}
"""What the page says, and nvidia-smi's name for it."""


def describe() -> dict[str, Any]:
    """The machine, its GPUs and what else runs on them as nvidia-smi tells it, and the versions of the libraries."""
    about: dict[str, Any] = {"layershuffle": __version__}
    for name in ("torch", "torchvision", "timm", "lightning", "torchmetrics", "triton", "transformers"):
        try:
            about[name] = version(name)
        except PackageNotFoundError:
            continue
    about |= {"python": platform.python_version(), "system": platform.platform()}
    about["cores"] = len(os.sched_getaffinity(0))
    gpus = [dict(zip(FIELDS, row)) for row in _smi(f"--query-gpu={','.join(FIELDS.values())}")]
    about["GPUs"] = gpus or "nvidia-smi is not here"
    about["other processes on the GPUs"] = [", ".join(row) for row in _smi("--query-compute-apps=pid,used_memory")]
    return about


def reasons(about: Mapping[str, Any]) -> str:
    """Why a GPU may be slower than it should be, as far as ``describe`` tells."""
    found = []
    if others := about["other processes on the GPUs"]:
        found.append(f"{len(others)} other processes are on the GPU")
    for gpu in about["GPUs"] if isinstance(about["GPUs"], list) else ():
        limit, default = gpu["power limit"], gpu["default power limit"]
        if _watts(limit) < _watts(default):
            found.append(f"its power limit is {limit} in place of {default}")
    if "triton" not in about:
        found.append("triton, which compiles for GPUs, is not installed")
    return "; ".join(found) or "not the power limit, other processes or a missing compiler: a profile would tell"


def _watts(text: str) -> float:
    try:
        return float(text.removesuffix(" W"))
    except ValueError:  # "[N/A]"
        return float("nan")


def _smi(query: str) -> list[list[str]]:
    """The rows that nvidia-smi answers; none if it isn't there or doesn't answer."""
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.split(", ") for line in done.stdout.splitlines() if done.returncode == 0 and line.strip()]
