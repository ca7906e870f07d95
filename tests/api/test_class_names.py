"""Classes are compared by their names wherever a model meets data, or another model."""

from dataclasses import dataclass

import pytest
import torch
from helpers import SMALL

from layershuffle import create_model, evaluate, load, prune
from layershuffle.checkpoints.merging import merge
from layershuffle.checkpoints.metadata import METADATA_KEY, CheckpointMetadata
from layershuffle.data import DataConfig, ImageData
from layershuffle.data.sets import TensorImages
from layershuffle.errors import UserError
from layershuffle.training import metadata

NAMES = ["apple", "fern", "sea", "sun"]
TURNED = ["sun", "apple", "fern", "sea"]
"""The same names in another sequence."""
RENAMED = ["fern", "sea", "sun", "zz_apple"]
"""Names of which one is another, so that all have other places in the alphabet."""
CONFIG = {"name": "vit_tiny_patch16_224", "num_classes": 4, "position": "none", **SMALL}


class Fruits(ImageData):
    """Random pictures, as many of each class, whose labels follow the sequence of ``names``."""

    num_classes = 4

    def __init__(self, names=tuple(NAMES), **kwargs):
        super().__init__(**kwargs)
        self.names = list(names)

    @property
    def class_names(self):
        return self.names

    def load(self, train):
        rng = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (40, 1, 8, 8), generator=rng, dtype=torch.uint8)
        labels = []
        for picture in range(40):
            name = NAMES[picture % 4]
            # RENAMED has another name in its place, which comes last.
            labels.append(self.names.index(name) if name in self.names else 3)
        return TensorImages(pixels, torch.tensor(labels))


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Writes the checkpoint of a model of classes with these names; returns its path."""
    monkeypatch.chdir(tmp_path)

    def save(path="run.ckpt", names=NAMES):
        torch.manual_seed(0)
        model = create_model(**CONFIG)
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        data = {"class": "Digits", "args": {}, "classes": names}
        values = {"model": CONFIG, "method": "baseline", "data": data}
        torch.save({"state_dict": weights, METADATA_KEY: values}, path)
        return path

    return save


def test_labels_follow_the_sequence_of_the_models_classes(trained):
    path = trained()
    expected = evaluate(path, Fruits(), protocols=["sequential"], accelerator="cpu")
    turned = evaluate(path, Fruits(TURNED), protocols=["sequential"], accelerator="cpu")
    assert turned.scores == expected.scores
    assert turned.measures == expected.measures
    assert turned.data.classes == NAMES

    expected = prune(path, Fruits(), keep=2, repeats=1, accelerator="cpu")
    turned = prune(path, Fruits(TURNED), keep=2, repeats=1, accelerator="cpu")
    assert turned.order == expected.order
    assert turned.results.scores == expected.results.scores


@pytest.mark.parametrize("study", [evaluate, lambda *args, **options: prune(*args, keep=2, **options)])
def test_other_classes_are_refused_with_the_first_difference(trained, study):
    with pytest.raises(UserError, match="class 0 is 'apple' there, but 'fern' here"):
        study(trained(), Fruits(RENAMED), accelerator="cpu")


def test_names_that_one_side_does_not_know_fit_everything(trained):
    path = trained(names=None)
    assert load(path).class_names is None
    evaluate(path, Fruits(RENAMED), protocols=["sequential"], accelerator="cpu")


def test_models_of_other_classes_are_not_merged(trained):
    first = trained("a.ckpt")
    renamed = trained("b.ckpt", RENAMED)
    turned = trained("c.ckpt", TURNED)
    with pytest.raises(UserError, match="class 0 is 'apple' there, but 'fern' here"):
        merge([first, renamed], seed=0)
    assert merge([first, turned], seed=0)[METADATA_KEY]["data"]["classes"] == NAMES


@dataclass
class Trainer:
    """As much of Lightning's trainer as the check needs."""

    datamodule: ImageData


@pytest.mark.parametrize(("names", "complaint"), [(RENAMED, "class 0 is 'apple'"), (TURNED, "another sequence")])
def test_a_run_does_not_go_on_with_other_classes(names, complaint):
    saved = CheckpointMetadata(model=CONFIG, data=DataConfig("Digits", {}, NAMES))
    with pytest.raises(UserError, match=complaint):
        metadata.check_resumed(saved, CONFIG, None, Trainer(Fruits(names)))
