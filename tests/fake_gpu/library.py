"""Builds the fake GPU: a library that takes the place of CUDA, cuBLAS and NCCL in a process that preloads it.

What torch's libraries ask of CUDA and the sources here don't have is added as functions that succeed and do nothing.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

NAME = "libcuda.so.1"
SOURCES = sorted(Path(__file__).parent.glob("*.[ch]*"))
TORCH = Path(torch.__file__).parent
LIBRARIES = ("*cuda*", "caffe2_nvrtc", "torch_python", "torch_cpu")
OF_CUDA = re.compile(r"^(cuda[A-Z]|__cuda|cublas|cudnn|nccl|cu[A-Z])")
REAL = re.compile(r"^(cudnnGet(Version|CudartVersion|ErrorString|Property)|cublasLtGetVersion)$")
"""Functions that answer the same without a GPU."""
ASKED_BY_NAME = (
    "cuCtxSetLimit",
    "cuCtxGetLimit",
    "cuTensorMapEncodeTiled",
    "cuTensorMapEncodeIm2col",
    "cuModuleUnload",
)
"""Functions that Triton looks up while it runs."""


def why_not() -> str | None:
    """Why there can be no fake GPU here; None if there can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    for program in ("g++", "nm"):
        if not shutil.which(program):
            return f"the fake GPU is built with g++, and there is no {program}"
    if headers() is None:
        return "there are no headers of CUDA: triton's wheel has them"
    return None


def headers() -> Path | None:
    """The folder with cuda.h of triton's wheel."""
    folder = TORCH.parent / "triton/backends/nvidia/include"
    return folder if (folder / "cuda_runtime_api.h").is_file() else None


def environment() -> dict[str, str]:
    """The variables with which a Python process finds the fake GPU."""
    folder = _build()
    return {"LD_PRELOAD": str(folder / NAME), "TRITON_LIBCUDA_PATH": str(folder)}


def run(module: str, *words: str, folder: Path) -> str:
    """What ``python -m fake_gpu.MODULE WORD ...`` prints in a process with the fake GPU."""
    tests = Path(__file__).parents[1]
    variables = os.environ | environment()
    variables["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", f"fake_gpu.{module}", *words]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _build() -> Path:
    """The folder with the library, compiled now or by an earlier test."""
    content = b"".join(source.read_bytes() for source in [*SOURCES, Path(__file__), TORCH / "version.py"])
    key = hashlib.sha256(content).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"fake-gpu-{os.getuid()}-{key}"
    if folder.exists():
        return folder

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        objects = [_compile(source, Path(scratch)) for source in SOURCES if source.suffix == ".cpp"]
        defined = set()
        for path in objects:
            defined |= _symbols(path, "--defined-only")
        rest = Path(scratch) / "rest.cpp"
        names = sorted(_asked_of_cuda() - defined)
        rest.write_text("".join(f'extern "C" int {name}() {{ return 0; }}\n' for name in names))
        objects.append(_compile(rest, Path(scratch)))

        whole = Path(scratch) / "whole"
        whole.mkdir()
        _run("g++", "-shared", "-o", whole / NAME, *objects, f"-Wl,-soname,{NAME}", "-ldl", "-lpthread")
        whole.rename(folder)
    return folder


def _compile(source: Path, folder: Path) -> Path:
    output = folder / f"{source.stem}.o"
    _run("g++", "-c", "-O1", "-fPIC", "-std=c++17", "-w", f"-I{headers()}", source, "-o", output)
    return output


def _asked_of_cuda() -> set[str]:
    """The functions of CUDA and its libraries that torch's libraries ask for."""
    names = set(ASKED_BY_NAME)
    for pattern in LIBRARIES:
        for library in (TORCH / "lib").glob(f"lib{pattern}.so"):
            names |= _symbols(library, "-D", "--undefined-only")
    return {name for name in names if OF_CUDA.match(name) and not REAL.match(name)}


def _symbols(path: Path, *options: str) -> set[str]:
    """The names of the functions of an object file or a library, without their versions and those that are weak."""
    names = set()
    for line in _run("nm", *options, path).splitlines():
        *_address, kind, name = line.split()
        if kind != "w":
            names.add(name.partition("@")[0])
    return names


def _run(*command: object) -> str:
    return subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
