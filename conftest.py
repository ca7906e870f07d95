"""Runs the examples of README.md and docs/ as tests: sh and python blocks, as they are printed.

The blocks of a page run one after the other in one folder, which has what a fresh clone has, and a finished experiment.
Blocks that take long, download or need a GPU are marked in the page with an HTML comment: <!-- skip: next "why" -->
The commands run in forks of a process that has imported all they need. Trainings and their validation end after a few
batches, unless the environment variable AS_PRINTED is set, as `make test-all` does.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import preloaded
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parent

SHORT_TRAININGS = """
layershuffle() {
    if [ "$1" = train ]; then
        command layershuffle "$@" --trainer.limit_train_batches 20 --trainer.limit_val_batches 2
    else
        command layershuffle "$@"
    fi
}
"""
"""What a shell reads before the commands of a block."""


def make_folder(namespace: dict) -> None:
    """The folder that a page's examples run in, and the command ``layershuffle`` on their path."""
    namespace["folder"] = folder = Path(tempfile.mkdtemp())
    shutil.copytree(ROOT / "examples", folder / "examples")
    shutil.copytree(ROOT / "results/reproduction/fashion_mnist", folder / "experiments/quickstart/fashion_mnist")
    command = folder / "bin" / "layershuffle"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {preloaded.python()} -m layershuffle "$@"\n')
    command.chmod(0o755)
    os.chdir(folder)


def remove_folder(namespace: dict) -> None:
    """Afterwards nothing is left."""
    os.chdir(ROOT)
    shutil.rmtree(namespace["folder"])


def run_in_shell(example: Example) -> None:
    """Run a block of commands; all must succeed."""
    folder = example.namespace["folder"]
    environment = os.environ | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    script = example.parsed
    if "AS_PRINTED" not in os.environ:
        script = SHORT_TRAININGS + script
    command = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode()


pytest_collect_file = Sybil(
    parsers=[CodeBlockParser("sh", run_in_shell), PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/guides/*.md", "docs/findings/*.md"],
    excludes=["docs/guides/extend.md"],  # tests of their own put its code to use
    setup=make_folder,
    teardown=remove_folder,
).pytest()
