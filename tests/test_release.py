"""What is published: the source distribution, the wheel, its types, its page on PyPI, and what says its version."""

import importlib.metadata
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
import yaml
from helpers import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from layershuffle.version import __version__

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ABOUT = ["CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"]
NOT_SHIPPED = ["tests/test_release.py", "results/a.json", "docs/index.md", "benchmarks/__init__.py", "conftest.py"]


def package_files():
    """The files that the package consists of, in a clone."""
    paths = {path.relative_to(ROOT).as_posix() for path in (ROOT / "layershuffle").rglob("*") if path.is_file()}
    files = {path for path in paths if "__pycache__" not in path and not path.startswith("layershuffle/configs")}
    configs = {f"layershuffle/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    return files | configs


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution of a clone, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("distributions")
    source = folder / "source"
    source.mkdir()
    for name in ABOUT:
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("layershuffle", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignored)
    for name in NOT_SHIPPED:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("")

    build = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    command = [sys.executable, "-c", build, str(folder)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    options = ["--verbose", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={folder}"]
    built = pip("wheel", *options, str(sdist))
    assert "Warning" not in built.stdout + built.stderr  # such as that a folder of configs is no package
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def target(distributions, tmp_path_factory):
    """A folder in which the wheel is installed, and nothing else."""
    folder = tmp_path_factory.mktemp("target")
    pip("install", "--quiet", "--no-deps", "--no-index", f"--target={folder}", str(distributions[1]))
    return folder


def pip(*words):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True)


# --- What is in them ----------------------------------------------------------------------------------------


def test_the_source_distribution_holds_what_builds_the_package(distributions):
    with tarfile.open(distributions[0]) as archive:
        members = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
        links = [member.name for member in archive.getmembers() if member.issym() or member.islnk()]
    generated = {name for name in members if name.startswith("layershuffle.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert {*members} - generated == package_files() | {*ABOUT}
    assert not links  # Windows has none


def test_the_wheel_holds_the_package(distributions):
    with zipfile.ZipFile(distributions[1]) as archive:
        members = {*archive.namelist()}
    metadata = {name for name in members if name.startswith(f"layershuffle-{__version__}.dist-info/")}
    assert members - metadata == package_files()
    assert "layershuffle/py.typed" in members
    assert distributions[1].stat().st_size < 5e6


def test_mypy_sees_the_types_of_an_installed_wheel(target, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import layershuffle\n\nlength: int = layershuffle.Order([1, 0])\n")
    # Without PYTHONPATH, and of a Python that has nothing but the wheel.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    python, site = make_venv(tmp_path / "venv")
    shutil.copytree(target / "layershuffle", site / "layershuffle")
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", tmp_path / "cache", program]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout
    assert re.findall(r"\[([\w-]+)\]", said) == ["assignment"], said
    assert 'has type "Order"' in said


# --- The wheel is enough ------------------------------------------------------------------------------------


def packages_without_extras():
    """The names of the distributions that `pip install layershuffle` installs."""
    waiting = [Requirement(text) for text in PROJECT["dependencies"]]
    names = set()
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            names.add(name)
            needs = [Requirement(text) for text in importlib.metadata.requires(name) or ()]
            waiting += [need for need in needs if need.marker is None or need.marker.evaluate({"extra": extra})]
    return names


@pytest.fixture(scope="module")
def python(target, tmp_path_factory):
    """A Python that has the wheel and what `pip install` installs with it. Links save the minutes that this takes."""
    folder = tmp_path_factory.mktemp("venv")
    python, site = make_venv(folder)
    shutil.copytree(target / "layershuffle", site / "layershuffle")
    for name in packages_without_extras():
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(distribution.locate_file(top))
    return python


def make_venv(folder):
    """An environment with nothing in it: its Python, and its folder of packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.rglob("site-packages")
    return folder / ("Scripts" if os.name == "nt" else "bin") / "python", site


@pytest.mark.slow
def test_the_wheel_is_enough(python, tmp_path):
    """In an empty folder, with nothing of the package but what the wheel holds, and without any extra."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"COLUMNS": "80"}

    def installed(*args):
        command = [python, "-m", "layershuffle", *args]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables)
        assert done.returncode == 0, done.stderr
        return done.stdout

    missing = "from importlib.util import find_spec; print(*filter(find_spec, ['sklearn', 'ray', 'umap', 'pytest']))"
    assert subprocess.run([python, "-c", missing], check=True, env=variables, capture_output=True).stdout.strip() == b""
    quick = ["--trainer.enable_progress_bar=false", "--trainer.max_steps=1", "--model.timm_args.depth=2"]
    data = ["--data.train_images=128", "--data.test_images=20"]
    installed("train", "mini_glyphs", "glyphs", "cpu", "--model.pretrained=false", *quick, *data)
    assert "layershuffle/configs/model/mini_digits.yaml" not in installed("list")
    predicted = installed("predict", "mini_glyphs_any_width", str(ROOT / "examples" / "letters"), "--random_orders=20")
    assert re.findall(r"(\w+)\.png: .*?% (\S+) \(first in \d+ of 20", predicted)[:2] == [("7", "7"), ("R", "R")]
    installed("evaluate", "runs/version_0/checkpoints/last.ckpt", "--random_orders=1", "--depths=1")
    assert "29 runs in experiments/mini" in installed("experiment", "mini", "--dry-run")
    installed("experiment", "quickstart", "--dry-run")
    installed("report", "runs")
    assert (tmp_path / "runs/report/index.html").stat().st_size > 1000
    assert (tmp_path / "runs/report/report.md").exists()


# --- What is said of it -------------------------------------------------------------------------------------


def test_the_newest_changes_are_those_of_this_version():
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest in ("Unreleased", f"[{__version__}] - {citation['date-released']}")
    assert citation["version"] == __version__
    assert f"image: layershuffle:{__version__}\n" in (ROOT / "docker/compose.yaml").read_text()


def test_citations_name_the_paper():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    readme = (ROOT / "README.md").read_text()
    assert paper["title"] in readme
    assert paper["url"] == PROJECT["urls"]["Paper"]
    # BibTeX writes ø in letters of its own.
    assert all(author["given-names"] in readme for author in paper["authors"])


def test_links_on_pypi_lead_to_files_of_the_repository():
    absolute = runpy.run_path(str(ROOT / ".ci/absolute_links.py"))["absolute"]
    readme = (ROOT / "README.md").read_text()
    text = absolute(readme, "https://example.org/o/n", "v1")
    assert not re.findall(r'(?:\]\(|src=")(?!https?:)[\w#./-]+', re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    targets = re.findall(r"https://example\.org/o/n/(raw|blob)/v1/([^)\s\"#]+)", text)
    assert targets
    for view, target in targets:
        assert (ROOT / target).is_file(), target
        assert (view == "raw") == (target.endswith(".png")), target
    assert absolute("[a](#b) ![c](d.png) [e](https://f.org)\n```\n[g](h)\n```\n", "R", "v1") == (
        "[a](R/blob/v1/README.md#b) ![c](R/raw/v1/d.png) [e](https://f.org)\n```\n[g](h)\n```\n"
    )


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed():
    oldest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / ".ci/oldest.txt").read_text(), re.MULTILINE))
    allowed = dict(re.findall(r"^(torch|torchvision)>=([\d.]+)$", "\n".join(PROJECT["dependencies"]), re.MULTILINE))
    assert {name: version.removesuffix(".0") for name, version in oldest.items()} == allowed
