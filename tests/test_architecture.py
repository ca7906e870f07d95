"""The rooms of the package: who may import whom, which pyproject.toml says under tool.importlinter."""

import logging.config

import pytest
from helpers import ROOT
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports


@pytest.fixture(autouse=True)
def keep_the_loggers(monkeypatch):
    """import-linter configures logging, which would silence the loggers of all later tests."""
    monkeypatch.setattr(logging.config, "dictConfig", lambda _: None)


def test_imports_run_downwards_and_never_in_a_circle(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == EXIT_STATUS_SUCCESS


def test_an_upward_import_is_found(tmp_path, monkeypatch):
    """The contracts above can fail: the same ones, on a package in which the lowest room imports the highest."""
    _, header, after_header = (ROOT / "pyproject.toml").read_text().partition("[tool.importlinter]")
    contracts, _, _ = after_header.partition("[tool.pytest")
    lines = contracts.replace("layershuffle", "upward").splitlines()
    # The modules of the exception aren't in that package.
    lines = [line for line in lines if not line.startswith("ignore_imports")]
    (tmp_path / "pyproject.toml").write_text("\n".join([header, *lines]))

    # The same rooms and modules, all of them empty.
    upward = tmp_path / "upward"
    upward.mkdir()
    for path in (ROOT / "layershuffle").iterdir():
        if (path / "__init__.py").is_file():
            (upward / path.name).mkdir()
            (upward / path.name / "__init__.py").touch()
        elif path.suffix == ".py":
            (upward / path.name).touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = str(tmp_path / "pyproject.toml")
    assert lint_imports(config_filename=config, no_cache=True) == EXIT_STATUS_SUCCESS

    (upward / "orders" / "__init__.py").write_text("import upward.commands\n")
    assert lint_imports(config_filename=config, no_cache=True) != EXIT_STATUS_SUCCESS
