"""A data set class of a user's own, outside the package: trained on and evaluated by its class path."""

import json
import os
import re
import subprocess
import sys

import pytest
from helpers import QUIET, ROOT, configs

from layershuffle.commands.evaluate import evaluate_command
from layershuffle.data import Digits, ImageData
from layershuffle.errors import UserError


def section(title):
    """What docs/guides/extend.md says under a heading."""
    guide = (ROOT / "docs/guides/extend.md").read_text()
    _, _, from_title_on = guide.partition(f"## {title}\n")
    text, _, _ = from_title_on.partition("\n## ")
    return text


def run(folder, script, *args):
    """Run a script of the repository in a folder, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / script), *map(str, args)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_class_in_the_guide_trains_and_evaluates(tmp_path, monkeypatch):
    code = re.search(r"```python\n(.*?)```", section("Add a data set"), re.DOTALL)[1]
    assert len(code.splitlines()) < 25
    (tmp_path / "stripes.py").write_text(code)
    named = ["--data", "stripes.Stripes"]
    train = [*configs("model/mini_digits", "trainer/cpu"), *named, "--data.contrast=50", *QUIET]
    trained = run(tmp_path, "train.py", *train, "--trainer.max_steps=1")
    assert trained.returncode == 0, trained.stderr
    checkpoint = tmp_path / "runs" / "version_0" / "checkpoints" / "last.ckpt"
    evaluate = [str(checkpoint), "--random_orders=1", "--depths=6", "--output=out.json"]

    # A checkpoint alone doesn't let code run that isn't of this package.
    unnamed = run(tmp_path, "evaluate.py", *evaluate)
    assert unnamed.returncode == 1
    sentence = "the data set it was trained on, stripes.Stripes, is not known here: if you trust its code, add --data"
    assert unnamed.stderr == f"error: {sentence} stripes.Stripes\n"

    # Named by an option or in a config, it is evaluated on, with the arguments of the training or others.
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    few_images = "data:\n  class_path: stripes.Stripes\n  init_args:\n    test_images: 10\n"
    (tmp_path / "data.yaml").write_text(few_images)
    for options, contrast, images in (
        (named, 50, 1000),
        (["--config=data.yaml", "--data.contrast=20"], 20, 10),
    ):
        evaluate_command([*evaluate, *options])
        data = json.loads((tmp_path / "out.json").read_text())["data"]
        assert data["name"] == "Stripes"
        assert data["class"] == "stripes.Stripes"
        assert data["images"] == images
        assert data["args"]["contrast"] == contrast

    (tmp_path / "stripes.py").unlink()
    gone = run(tmp_path, "evaluate.py", *evaluate, *named)
    assert gone.stderr.startswith("error: stripes.Stripes can't be imported (No module named 'stripes'): run this in")


class Forgetful(Digits):
    """It doesn't keep its argument."""

    def __init__(self, root="somewhere", **kwargs):
        super().__init__(**kwargs)


class Unrecordable(Forgetful):
    """It keeps a module as its argument, which no file can hold."""

    @property
    def root(self):
        return os


@pytest.mark.parametrize(("cls", "reason"), [(Forgetful, "has no attribute 'root'"), (Unrecordable, "serializable")])
def test_a_class_that_cannot_be_recorded_is_refused_before_training(cls, reason):
    with pytest.raises(UserError, match=f"checkpoints can't record the arguments of {cls.__name__} .*{reason}.*: keep"):
        cls().setup()


def test_arguments_that_a_class_does_not_pass_on_are_not_recorded():
    class Fixed(Digits):
        def __init__(self, contrast=1):
            super().__init__(batch_size=7)
            self.contrast = contrast

    assert Fixed().config().args == {"contrast": 1}
    assert set(Digits().config().args) == set(ImageData().config().args)
