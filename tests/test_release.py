"""What is published: source distribution, wheel, types, the page on PyPI, and where the version and paper are named."""

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
"""The files of the source distribution that are not the package's own."""
NOT_SHIPPED = ["tests/test_release.py", "results/a.json", "docs/index.md", "benchmarks/__init__.py", "conftest.py"]
"""Files that a clone has, but that are published in no distribution."""


def package_files():
    """The files that the package consists of, with the configs, which a clone has elsewhere."""
    files = set()
    for path in (ROOT / "layershuffle").rglob("*"):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and "__pycache__" not in name and not name.startswith("layershuffle/configs"):
            files.add(name)
    for path in (ROOT / "configs").rglob("*.yaml"):
        files.add(f"layershuffle/{path.relative_to(ROOT).as_posix()}")
    return files


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
    _, wheel = distributions
    folder = tmp_path_factory.mktemp("target")
    pip("install", "--quiet", "--no-deps", "--no-index", f"--target={folder}", str(wheel))
    return folder


def pip(*words):
    """Run pip, which must succeed; returns the process with what it printed."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True)


def variables_without_pythonpath():
    """The environment variables of a user, whose Python doesn't look for modules in a clone."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


# --- What is in them ----------------------------------------------------------------------------------------


def test_the_source_distribution_holds_what_builds_the_package(distributions):
    sdist, _ = distributions
    files = set()
    links = []
    with tarfile.open(sdist) as archive:
        for member in archive.getmembers():
            if member.isfile():
                _top_folder, _, name = member.name.partition("/")
                files.add(name)
            elif member.issym() or member.islnk():
                links.append(member.name)

    generated = {name for name in files if name.startswith("layershuffle.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert files - generated == package_files() | {*ABOUT}
    assert not links  # Windows has none


def test_the_wheel_holds_the_package(distributions):
    _, wheel = distributions
    with zipfile.ZipFile(wheel) as archive:
        files = {*archive.namelist()}

    metadata = {name for name in files if name.startswith(f"layershuffle-{__version__}.dist-info/")}
    assert files - metadata == package_files()
    assert "layershuffle/py.typed" in files
    assert wheel.stat().st_size < 5e6  # bytes


def test_mypy_sees_the_types_of_an_installed_wheel(target, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("import layershuffle\n\nlength: int = layershuffle.Order([1, 0])\n")
    # mypy looks for packages in a Python that has nothing but the wheel.
    python, site = make_venv(tmp_path / "venv")
    shutil.copytree(target / "layershuffle", site / "layershuffle")

    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", tmp_path / "cache", program]
    environment = variables_without_pythonpath()
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True).stdout

    # The only mistake is that an order is no whole number.
    assert re.findall(r"\[([\w-]+)\]", said) == ["assignment"], said
    assert 'has type "Order"' in said


# --- The wheel is enough ------------------------------------------------------------------------------------


def packages_without_extras():
    """The names of the distributions that `pip install layershuffle` installs."""
    waiting = [Requirement(text) for text in PROJECT["dependencies"]]
    seen = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in importlib.metadata.requires(name) or ():
                need = Requirement(text)
                if need.marker is None or need.marker.evaluate({"extra": extra}):
                    waiting.append(need)
    return {name for name, _ in seen}


@pytest.fixture(scope="module")
def python(target, tmp_path_factory):
    """A Python that has the wheel and what `pip install` installs with it. Links save the minutes that this takes."""
    folder = tmp_path_factory.mktemp("venv")
    python, site = make_venv(folder)
    shutil.copytree(target / "layershuffle", site / "layershuffle")
    for name in packages_without_extras():
        distribution = importlib.metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files}
        for top in tops - {"..", "__pycache__"}:
            if not (site / top).exists():  # several distributions may share a folder
                (site / top).symlink_to(distribution.locate_file(top))
    return python


def make_venv(folder):
    """An environment with nothing in it: its Python, and its folder of packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    programs = "Scripts" if os.name == "nt" else "bin"
    (site,) = folder.rglob("site-packages")
    return folder / programs / "python", site


@pytest.mark.slow
def test_the_wheel_is_enough(python, tmp_path):
    """In an empty folder, with nothing of the package but what the wheel holds, and without any extra."""
    variables = variables_without_pythonpath() | {"COLUMNS": "80"}

    def installed(*args):
        """Run a command, which must succeed; returns what it printed."""
        command = [python, "-m", "layershuffle", *args]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=variables)
        assert process.returncode == 0, process.stderr
        return process.stdout

    # What only extras need is not there.
    code = "from importlib.util import find_spec; print(*filter(find_spec, ['sklearn', 'ray', 'umap', 'pytest']))"
    process = subprocess.run([python, "-c", code], check=True, env=variables, capture_output=True)
    assert process.stdout.strip() == b""

    quick = ["--trainer.enable_progress_bar=false", "--trainer.max_steps=1", "--model.timm_args.depth=2"]
    data = ["--data.train_images=128", "--data.test_images=20"]
    installed("train", "mini_glyphs", "glyphs", "cpu", "--model.pretrained=false", *quick, *data)
    assert "layershuffle/configs/model/mini_digits.yaml" not in installed("list")

    # The published model reads each picture as the letter that names its file.
    letters = str(ROOT / "examples" / "letters")
    predicted = installed("predict", "mini_glyphs_any_width", letters, "--random_orders=20")
    files_and_classes = re.findall(r"(\w+)\.png: .*?% (\S+) \(first in \d+ of 20", predicted)
    assert files_and_classes[:2] == [("7", "7"), ("R", "R")]

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

    outside_code = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    relative_links = re.findall(r'(?:\]\(|src=")(?!https?:)[\w#./-]+', outside_code)
    assert not relative_links
    targets = re.findall(r"https://example\.org/o/n/(raw|blob)/v1/([^)\s\"#]+)", text)
    assert targets
    for view, target in targets:
        assert (ROOT / target).is_file(), target
        assert (view == "raw") == (target.endswith(".png")), target

    relative = "[a](#b) ![c](d.png) [e](https://f.org)\n```\n[g](h)\n```\n"
    expected = "[a](R/blob/v1/README.md#b) ![c](R/raw/v1/d.png) [e](https://f.org)\n```\n[g](h)\n```\n"
    assert absolute(relative, "R", "v1") == expected


def test_the_oldest_versions_that_are_tested_are_those_that_are_allowed():
    tested = (ROOT / ".ci/oldest.txt").read_text()
    oldest_tested = {
        name: version.removesuffix(".0")  # such as 2.11.0, where the project says 2.11
        for name, version in re.findall(r"^([\w-]+)==([\d.]+)$", tested, re.MULTILINE)
    }
    dependencies = "\n".join(PROJECT["dependencies"])
    oldest_allowed = dict(re.findall(r"^(torch|torchvision)>=([\d.]+)$", dependencies, re.MULTILINE))
    assert oldest_tested == oldest_allowed
