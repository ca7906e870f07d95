"""Weights of other trainers: their wrappers, prefixes and plain values."""

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import SMALL

from layershuffle import create_model
from layershuffle.errors import UserError
from layershuffle.models import weights as reading
from layershuffle.models.weights import read_backbone, read_file

NAME = "vit_tiny_patch16_224"


@pytest.fixture
def trained():
    torch.manual_seed(1)
    return create_model(NAME, 5, **SMALL).vit.state_dict()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "weights.pth")


def prefixed(state_dict, prefix):
    return {prefix + name: value for name, value in state_dict.items()}


def check_taken(path, trained):
    """Check that a model that starts from a file has these weights."""
    taken = create_model(NAME, 5, pretrained=path, **SMALL).vit.state_dict()
    for name, value in trained.items():
        assert torch.equal(taken[name], value)


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "_orig_mod.",
        "module._orig_mod.",
        "model.",
        "net.",
        "backbone.",
        "teacher.",
        "module.teacher.backbone.",
        "a.b.",
    ],
)
def test_prefixes(path, trained, prefix):
    torch.save({"state_dict": prefixed(trained, prefix)}, path)
    check_taken(path, trained)


@pytest.mark.parametrize(
    ("entries", "is_averaged"),
    [
        (["state_dict"], False),
        (["state_dict_ema"], True),
        (["model_ema"], True),
        (["teacher"], True),
        (["model", "net", "state_dict"], False),
        (["ema", "module"], True),
    ],
)
def test_any_nesting_of_wrappers(path, trained, entries, is_averaged):
    content = prefixed(trained, "module.")
    for entry in reversed(entries):
        content = {entry: content, "epoch": 3}
    torch.save(content, path)
    check_taken(path, trained)
    assert read_backbone(path).is_averaged == is_averaged


def test_a_file_of_timms_saver(path, trained):
    options = Namespace(model=NAME, lr=np.float64(0.1), output=Path("here"))
    averaged = {name: value + 1 for name, value in trained.items()}
    content = {"state_dict": trained, "state_dict_ema": averaged, "args": options, "metric": np.float32(0.5)}
    torch.save({**content, "epoch": np.int64(3), "version": 2}, path)
    check_taken(path, trained)


def test_which_weights_were_taken_is_said(path, trained, caplog):
    caplog.set_level("INFO")
    torch.save({"state_dict": trained, "state_dict_ema": trained}, path)
    check_taken(path, trained)
    assert "trained weights (state_dict), not those of state_dict_ema" in caplog.text

    torch.save({"state_dict_ema": {**prefixed(trained, "net."), "projector.weight": torch.ones(1)}}, path)
    check_taken(path, trained)
    assert "averaged weights (state_dict_ema: net.), without projector.weight" in caplog.text

    # Lightning's averages are where the raw weights otherwise are.
    torch.save({"state_dict": trained, "current_model_state": trained}, path)
    assert read_backbone(path).is_averaged


def test_the_teacher_is_taken_rather_than_its_student(path, trained):
    student = {name: value + 1 for name, value in trained.items()}
    torch.save({"student": student, "teacher": trained}, path)
    check_taken(path, trained)

    torch.save(prefixed(student, "student.backbone.") | prefixed(trained, "teacher.backbone."), path)
    check_taken(path, trained)


def test_what_is_left_over_is_named(path, trained):
    extra = {f"extra.{number}": torch.ones(1) for number in range(7)}
    torch.save({**trained, **extra}, path)
    with pytest.raises(UserError, match=r"extra\.0, extra\.1, extra\.2 and 4 more") as error:
        create_model(NAME, 5, pretrained=path, **SMALL)
    assert "extra.3" not in str(error.value)


class Code:
    """An object whose pickle calls ``print("run")`` when it is read."""

    def __reduce__(self):
        return print, ("run",)


def test_code_is_not_run(path, trained, capsys):
    torch.save({"state_dict": trained, "args": Namespace(hook=Code())}, path)
    with pytest.raises(UserError, match="holds code"):
        read_file(path)
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [{}, {"state_dict": [1]}, {"state_dict": {"a": 1}}, {"model": {"net": {}}}, {"n_averaged": torch.tensor(1)}],
    ids=str,
)
def test_files_without_a_state_dict(path, content):
    torch.save(content, path)
    with pytest.raises(UserError, match="holds no state dict"):
        read_backbone(path)


def test_a_file_of_more_tensors_than_any_model_has(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_TENSORS", 10)
    many = {str(number): torch.ones(1) for number in range(11)}
    torch.save(many, tmp_path / "many.pth")
    reading.safetensors.torch.save_file(many, tmp_path / "many.safetensors")
    for name in ("many.pth", "many.safetensors"):
        with pytest.raises(UserError, match="tensors"):
            read_file(tmp_path / name)

    monkeypatch.setattr(reading, "MAX_PICKLE_BYTES", 100)
    torch.save({"x" * 200: torch.ones(1)}, tmp_path / "long.pth")
    with pytest.raises(UserError, match="other values"):
        read_file(tmp_path / "long.pth")
