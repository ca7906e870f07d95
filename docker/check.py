"""Does what the Dockerfile says in an empty environment, without a container engine: python docker/check.py.

Its RUN and COPY instructions are carried out in turn, below a temporary folder in place of /; those of apt-get, which
need a machine of their own, are left out and named. Then a model is trained for a step and evaluated.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).parents[1]
TRAIN = """
python /opt/layershuffle/train.py --config /opt/layershuffle/configs/model/mini_digits.yaml
    --config /opt/layershuffle/configs/data/digits.yaml --config /opt/layershuffle/configs/method/layershuffle.yaml
    --config /opt/layershuffle/configs/trainer/cpu.yaml --trainer.max_steps 1 --trainer.enable_progress_bar false
"""
EVALUATE = "python /opt/layershuffle/evaluate.py runs/version_0/checkpoints/last.ckpt --orders 1 --keep 6"


def instructions(text: str) -> list[tuple[str, str]]:
    """Each instruction and its arguments, in turn."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file, relative to the repository, out of the image."""
    out = False
    for pattern in (ROOT / ".dockerignore").read_text().splitlines():
        if pattern and not pattern.startswith("#"):
            bare = pattern.removeprefix("!").removeprefix("**/")
            parts = path.split("/")
            hits = ["/".join(parts[: n + 1]) for n in range(len(parts))] + (parts if "**" in pattern else [])
            if any(fnmatch(hit, bare) for hit in hits):
                out = not pattern.startswith("!")
    return out


def copy(arguments: str, root: Path) -> None:
    """A COPY: files into a folder or to a name, a folder's content into a folder."""
    *sources, target = arguments.split()
    for source in sources:
        files = [ROOT / source] if (ROOT / source).is_file() else [p for p in (ROOT / source).rglob("*") if p.is_file()]
        for file in files:
            relative = file.relative_to(ROOT).as_posix()
            if ignored(relative):
                if file.parent.name == "__pycache__":
                    continue
                raise SystemExit(f"COPY {source}: .dockerignore leaves out {relative}")
            inside = file.relative_to(ROOT / source).as_posix() if (ROOT / source).is_dir() else ""
            to = root / target.strip("/") / (inside or (file.name if target.endswith("/") else ""))
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, to)


def main() -> None:
    """Go through the Dockerfile; exits with 1 where an instruction fails."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        # Nothing of the caller's but how to reach the package index.
        environment = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "http"))}
        environment |= {"PATH": os.environ["PATH"], "HOME": folder, "TMPDIR": folder}

        def run(command: str, cwd: Path = root) -> None:
            print(f"$ {command}", flush=True)
            placed = re.sub(r"(?<![\w.])/(opt|workspace)\b", rf"{folder}/\1", command)
            if subprocess.run(["bash", "-euo", "pipefail", "-c", placed], cwd=cwd, env=environment).returncode:
                raise SystemExit(f"failed: {command}")

        for name, arguments in instructions((ROOT / "docker/Dockerfile").read_text()):
            if name == "RUN" and ("apt-get" in arguments or "chown" in arguments):
                print(f"left out: {arguments}")
                arguments = "mkdir -p /workspace" if "chown" in arguments else "true"
            if name == "RUN":
                run(arguments)
            elif name == "COPY":
                copy(arguments, root)
            elif name == "ENV":
                for variable, value in (pair.split("=", 1) for pair in arguments.split()):
                    value = re.sub(r"(?<![\w.])/(opt|workspace)\b", rf"{folder}/\1", value)
                    environment[variable] = value.replace("$PATH", environment["PATH"])
        for command in (TRAIN, EVALUATE):
            run(" ".join(command.split()), root / "workspace")
        print("the Dockerfile's steps work")


if __name__ == "__main__":
    sys.exit(main())
