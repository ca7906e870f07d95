"""The description of a machine, and why its GPU may be slower than it should be."""

import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from layershuffle.plurals import counted
from layershuffle.processes import usable_cores
from layershuffle.version import __version__

LIBRARIES = ("torch", "torchvision", "timm", "lightning", "torchmetrics", "triton", "transformers")
FIELDS = {
    "GPU": "name",
    "driver": "driver_version",
    "memory": "memory.total",
    "power limit": "power.limit",
    "default power limit": "power.default_limit",
}
"""The names of these fields on the page, and those that nvidia-smi has for them."""
OTHERS = "other processes on the GPUs"


def describe() -> dict[str, Any]:
    """The machine, its GPUs and what else runs on them, and the versions of the libraries.

    What it says of the GPUs comes from nvidia-smi.
    """
    about: dict[str, Any] = {"layershuffle": __version__}
    for name in LIBRARIES:
        # Some libraries are optional. Without triton, nothing is compiled for GPUs.
        try:
            about[name] = version(name)
        except PackageNotFoundError:
            continue
    about["python"] = platform.python_version()
    about["system"] = platform.platform()
    about["cores"] = usable_cores()
    gpus = _ask_nvidia_smi(f"--query-gpu={','.join(FIELDS.values())}")
    about["GPUs"] = [dict(zip(FIELDS, values)) for values in gpus] or "nvidia-smi is not here"
    # Other processes take a share of the GPU's time and memory, and can be why it is slow.
    about[OTHERS] = [", ".join(values) for values in _ask_nvidia_smi("--query-compute-apps=pid,used_memory")]
    return about


def is_same_machine(about: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of one machine with the same versions, whatever else runs on it."""
    return all(other.get(name) == value for name, value in about.items() if name != OTHERS)


def reasons_for_slowness(about: Mapping[str, Any]) -> str:
    """Why a GPU may be slower than it should be, as far as ``describe`` tells."""
    reasons = []
    if about[OTHERS]:
        reasons.append(f"the GPU is shared with {counted(len(about[OTHERS]), 'other process')}")
    gpus = about["GPUs"] if isinstance(about["GPUs"], list) else []
    for gpu in gpus:
        limit = gpu["power limit"]
        default = gpu["default power limit"]
        if _watts(limit) < _watts(default):
            reasons.append(f"its power limit is {limit} in place of {default}")
    if "triton" not in about:
        reasons.append("triton, which compiles for GPUs, is not installed")
    return "; ".join(reasons) or "not the power limit, other processes or a missing compiler: a profile would tell"


def _watts(text: str) -> float:
    """The watts in a text of nvidia-smi such as "350.00 W"; NaN for "[N/A]", with which no comparison is true."""
    try:
        return float(text.removesuffix(" W"))
    except ValueError:
        return float("nan")


def _ask_nvidia_smi(query: str) -> list[list[str]]:
    """The rows of nvidia-smi's answer, each as a list of fields; no rows if it is missing, fails or takes too long."""
    command = ["nvidia-smi", query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    if done.returncode != 0:
        return []
    return [line.split(", ") for line in done.stdout.splitlines() if line.strip()]
