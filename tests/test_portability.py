"""What can be tested on Linux of Windows, which lacks much, and of macOS, which starts processes in another way."""

import ast
import os
import subprocess
import sys

import pytest
from helpers import ROOT
from PIL import Image

from layershuffle.api.serve import ClusterOptions
from layershuffle.config_files import packaged_in
from layershuffle.errors import UserError
from layershuffle.processes import usable_cores

# What Windows lacks of Python's library. `mypy --platform win32`, which takes minutes, knows all of it.
MODULES = {"fcntl", "grp", "pwd", "resource", "termios"}
OS = {"O_NOFOLLOW", "O_NONBLOCK", "fork", "getuid", "killpg", "mkfifo", "posix_fadvise", "pread", "preadv", "pwrite"}
OS |= {"sched_getaffinity", "set_blocking", "setsid", "statvfs", "sysconf"}
SIGNALS = {"SIGALRM", "SIGCHLD", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGSTOP", "SIGUSR1", "SIGUSR2"}
LACKING_OF_MODULE = {"os": OS, "signal": SIGNALS}


def lacking(source):
    """The names in a module's source that Windows lacks."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= MODULES & {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = node.value.id
            if node.attr in LACKING_OF_MODULE.get(module, ()):
                names.add(node.attr)
    return names


def test_what_windows_lacks_is_used_where_the_system_is_asked_for():
    paths = [path for path in (ROOT / "layershuffle").rglob("*.py") if lacking(path.read_text())]
    assert len(paths) > 3
    careless = [path for path in paths if "sys.platform" not in path.read_text()]
    assert careless == []


def run(folder, program, *args):
    """Run the text of a program in a folder, which must succeed."""
    path = folder / "program.py"
    path.write_text(program)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, path, *args]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr


QUICK = ["cpu", "--trainer.enable_progress_bar=false", "--trainer.max_steps=1"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems needn't be imitated")
def test_training_and_studies_on_windows(tmp_path):
    """Libraries are imported first, as they are those for Linux. They still have the signals of Linux."""
    program = f"""
import os, sys
import lightning.pytorch, matplotlib.pyplot, timm, torchvision, wandb
for name in {OS & set(dir(os))}:
    delattr(os, name)
for name in {MODULES}:
    sys.modules[name] = None
sys.platform = "win32"

from layershuffle.commands import main
main(sys.argv[1:])
"""
    data = ["--data.train_images=64", "--data.test_images=20"]
    run(tmp_path, program, "train", "mini_glyphs", "glyphs", *QUICK, *data)
    run(tmp_path, program, "evaluate", "runs/version_0/checkpoints/last.ckpt", "--random_orders=1", "--depths=1")


@pytest.mark.slow
def test_processes_that_read_images_start_without_a_fork(tmp_path):
    for name in ("cats", "dogs"):
        for index in range(10):
            path = tmp_path / "pets" / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (32, 32), 10 * index).save(path)
    program = """
import multiprocessing, sys
from layershuffle.commands import main

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main(sys.argv[1:])
"""
    data = ["--data=ImageFolders", "--data.root=pets", "--data.test_fraction=0.2", "--data.workers=1"]
    run(tmp_path, program, "train", "mini_digits", *QUICK, "--data.batch_size=8", *data)


def test_configs_are_found_where_git_cannot_make_links(tmp_path):
    package = tmp_path / "package"
    package.mkdir()
    configs = package / "configs"

    # In place of a link, git then writes a file with the link's target.
    configs.write_text("../configs")
    assert packaged_in(package) == (tmp_path / "configs").resolve()

    configs.unlink()
    configs.mkdir()
    assert packaged_in(package) == configs.resolve()


def test_serving_is_refused_on_windows(small, monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(UserError, match="Linux or macOS"):
        ClusterOptions().cluster(small())


def test_cores_are_counted_without_affinity(monkeypatch):
    if sys.platform == "linux":
        assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert usable_cores() == os.cpu_count()
