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
RENAMED = ["fern", "sea", "sun", "zz_apple"]
CONFIG = {"name": "vit_tiny_patch16_224", "num_classes": 4, "position": "none", **SMALL}


class Fruits(ImageData):
    """Random pictures, whose labels follow the sequence of ``names``."""

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
        what = torch.arange(40) % 4
        labels = torch.tensor([self.names.index(NAMES[kind]) if NAMES[kind] in self.names else 3 for kind in what])
        return TensorImages(pixels, labels)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def save(path="run.ckpt", names=NAMES):
        torch.manual_seed(0)
        weights = {f"model.{name}": value for name, value in create_model(**CONFIG).state_dict().items()}
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
    pruned = [prune(path, data, keep=2, repeats=1, accelerator="cpu") for data in (Fruits(), Fruits(TURNED))]
    assert pruned[0].order == pruned[1].order
    assert pruned[0].results.scores == pruned[1].results.scores


@pytest.mark.parametrize("study", [evaluate, lambda *args, **options: prune(*args, keep=2, **options)])
def test_other_classes_are_refused_with_the_first_difference(trained, study):
    with pytest.raises(UserError, match="class 0 is 'apple' there, but 'fern' here"):
        study(trained(), Fruits(RENAMED), accelerator="cpu")


def test_names_that_one_side_does_not_know_fit_everything(trained):
    path = trained(names=None)
    assert load(path).class_names is None
    evaluate(path, Fruits(RENAMED), protocols=["sequential"], accelerator="cpu")


def test_models_of_other_classes_are_not_merged(trained):
    paths = [trained("a.ckpt"), trained("b.ckpt", RENAMED)]
    with pytest.raises(UserError, match="class 0 is 'apple' there, but 'fern' here"):
        merge(paths, seed=0)
    assert merge(["a.ckpt", trained("c.ckpt", TURNED)], seed=0)[METADATA_KEY]["data"]["classes"] == NAMES


@dataclass
class Trainer:
    datamodule: ImageData


@pytest.mark.parametrize(("names", "complaint"), [(RENAMED, "class 0 is 'apple'"), (TURNED, "another sequence")])
def test_a_run_does_not_go_on_with_other_classes(names, complaint):
    saved = CheckpointMetadata(model=CONFIG, data=DataConfig("Digits", {}, NAMES))
    with pytest.raises(UserError, match=complaint):
        metadata.check_resumed(saved, CONFIG, None, Trainer(Fruits(names)))
