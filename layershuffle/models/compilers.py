"""What torch.compile needs of a machine besides torch, looked for before a training begins."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from layershuffle.errors import UserError

ALTERNATIVE = "or leave the layers uncompiled, with --model.compile=false in a training"


def check_compilers() -> None:
    """Raise a UserError if compiling would fail here, which torch notices only in the first step.

    torch compiles C++, and Triton a driver for NVIDIA's GPUs in C. Both include ``Python.h``.
    """
    # torch and Triton look for the same programs, in the same environment variables.
    if not _is_installed(os.environ.get("CXX", "g++"), "clang++"):
        raise UserError(f"compiling needs a C++ compiler: install g++, {ALTERNATIVE}")
    if torch.cuda.is_available() and not _is_installed(os.environ.get("CC", "gcc"), "clang"):
        raise UserError(f"compiling for a GPU needs a C compiler: install gcc, {ALTERNATIVE}")
    headers = Path(sysconfig.get_config_var("INCLUDEPY") or "")
    if not (headers / "Python.h").is_file():
        raise UserError(
            f"compiling needs Python's headers, but {headers} has no Python.h: install python3-dev, {ALTERNATIVE}"
        )


def _is_installed(*programs: str) -> bool:
    """Whether at least one of the programs is found."""
    return any(shutil.which(program) for program in programs)
