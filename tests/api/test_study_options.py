"""The options that all functions have that study a model."""

import inspect
from dataclasses import replace

import pytest

import layershuffle
from layershuffle.api.study import start_study
from layershuffle.api.study_options import StudyOptions
from layershuffle.commands.study_options import parse_study, study_parser
from layershuffle.data import Glyphs

OPTIONS = set(StudyOptions.__annotations__)
"""The names of the options."""


def test_a_command_passes_all_options_on(tmp_path):
    args = ["mini_glyphs", "--seed=3", "--accelerator=cpu", "--precision=auto", "--compile", "--batch_size=7"]
    command = parse_study(study_parser("depth", "Measure."), [*args, f"--output={tmp_path}/a.json"], "depth")
    expected = {"seed": 3, "accelerator": "cpu", "precision": "auto", "compile": True, "batch_size": 7}
    assert command.options == expected
    assert set(expected) == OPTIONS


@pytest.mark.parametrize("function", [start_study, layershuffle.evaluate])
def test_where_the_options_stand_by_name_none_is_missing(function):
    parameters = inspect.signature(function).parameters
    defaults = {name: parameters[name].default for name in OPTIONS}
    expected = {"seed": 0, "accelerator": "auto", "precision": "32-true", "compile": False, "batch_size": None}
    assert defaults == expected


def test_the_options_of_a_study_are_keyword_arguments():
    results = layershuffle.similarity("mini_glyphs", Glyphs(test_images=20), seed=3, accelerator="cpu", batch_size=10)
    assert results.evaluation == replace(results.evaluation, seed=3, batch_size=10)


@pytest.mark.parametrize("name", ["analyse", "depth", "prune", "search", "similarity"])
def test_an_option_that_no_study_has_is_refused(name):
    study = getattr(layershuffle, name)
    arguments = {"sede": 1}
    if name == "prune":
        arguments["keep"] = 1  # which it always needs
    with pytest.raises(TypeError, match="sede"):
        study("mini_glyphs", Glyphs(), **arguments)
