"""What a checkpoint records of its data set."""

import pytest

from layershuffle.data import DataConfig, Digits, TorchvisionImages
from layershuffle.errors import UserError


def test_what_is_written_is_read_again():
    config = DataConfig("Digits", {"batch_size": 7}, ["zero", "one"])
    assert config.to_dict() == {"class": "Digits", "args": {"batch_size": 7}, "classes": ["zero", "one"]}
    assert DataConfig.from_dict(config.to_dict()) == config
    assert DataConfig.from_dict({"class": "Digits", "args": {}}) == DataConfig("Digits", {}, None)


@pytest.mark.parametrize(
    "saved",
    [
        None,
        1,
        "x",
        [],
        {},
        {"class": "Digits"},
        {"class": ["Digits"], "args": {}},
        {"class": "Digits", "args": 1},
        {"args": {}},
    ],
)
def test_what_was_not_written_is_refused(saved):
    with pytest.raises(UserError, match="its data can't be"):
        DataConfig.from_dict(saved)


def test_the_arguments_of_parents_are_recorded_too():
    config = DataConfig.of(TorchvisionImages("CIFAR10", 10, batch_size=7, interpolation="bicubic"))
    assert config.name == "TorchvisionImages"
    assert config.args["dataset"] == "CIFAR10"
    assert config.args["batch_size"] == 7
    assert config.args["interpolation"] == "bicubic"


def test_a_class_of_another_package_is_recorded_by_its_import_path():
    class Elsewhere(Digits):
        pass

    Elsewhere.__module__ = "my_sets"
    Elsewhere.__qualname__ = "Elsewhere"
    assert DataConfig.of(Elsewhere()).name == "my_sets.Elsewhere"
