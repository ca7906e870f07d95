"""A vote of training images in the place of the classifier, in every order, with scikit-learn's as the reference."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import batches, fails
from sklearn.neighbors import KNeighborsClassifier

import layershuffle
from layershuffle.commands.depth import depth_command
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.data import Digits, Glyphs
from layershuffle.errors import UserError
from layershuffle.evaluation.neighbours import TEMPERATURE
from layershuffle.report.collect import collect, read_files
from layershuffle.results import NeighbourVote, Results
from layershuffle.results.measures import EarlyExits

ORDERS = ["11 10 9 8 7 6 5 4 3 2 1 0", "first(6)"]


def digits():
    return Digits(train_images=400, test_images=100)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def features_and_labels(part, order=None):
    """The features and the labels of the digits of a part, such as "test"; one call of the model for all of them."""
    data = digits()
    model = layershuffle.load("mini_glyphs").model
    preprocess = data.prepare_for(*model.image_format)
    data.setup("fit")
    images, labels = batches(data.loader(part))
    model.classifier = torch.nn.Identity()
    with torch.inference_mode():
        features = model(preprocess(images), order).logits
    return features.numpy(), labels.numpy()


def test_every_order_is_scored_by_the_nearest_training_images():
    results = layershuffle.evaluate(
        "mini_glyphs", digits(), classifier="neighbours", neighbours=7, orders=ORDERS, accelerator="cpu"
    )

    def weights(distances):
        """Of neighbours at these cosine distances."""
        similarities = 1 - distances
        return np.exp(similarities / TEMPERATURE)

    vote = KNeighborsClassifier(7, metric="cosine", weights=weights, algorithm="brute")
    vote.fit(*features_and_labels("train"))
    assert len(results.scores) == 3  # in sequential order, and in both of ORDERS
    for score in results.scores:
        features, labels = features_and_labels("test", score.order)
        accuracy = (vote.predict(features) == labels).mean()
        assert score.top1 == pytest.approx(accuracy, abs=0.011)  # one of 100 images
        assert score.loss > 0
    assert results.scores[0].top1 > 0.5
    # The model has 500 classes, and the results those of the data.
    assert results.model.num_classes == 10
    assert results.evaluation.classifier == NeighbourVote(neighbours=7, images=360, temperature=TEMPERATURE)


def test_the_results_say_who_classified_and_files_without_it_are_read_as_before(capsys):
    few = ["--data.train_images=200", "--data.test_images=50", "--accelerator=cpu", "--protocols=sequential"]
    options = ["mini_digits", "digits", "--pretrained=random", *few]
    results = evaluate_command([*options, "--classifier=neighbours", "--neighbours=500", "--output=n/n.json"])
    assert "180 nearest neighbours" in " ".join(capsys.readouterr().out.split())
    assert Results.load("n/n.json") == results
    assert results.label.endswith("180 nearest neighbours")

    own = evaluate_command([*options, "--output=n/own.json"])
    assert own.evaluation.classifier is None
    assert "classifier" not in json.loads(Path("n/own.json").read_text())["evaluation"]
    (setup,), complaints = collect(read_files(Path("n")))
    assert len(setup.runs) == 2
    assert not complaints

    # A vote of no neighbours is none.
    damaged = json.loads(Path("n/n.json").read_text())
    damaged["evaluation"]["classifier"]["neighbours"] = 0
    Path("n/n.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match="vote"):
        Results.load("n/n.json")


def test_a_model_card_takes_no_scores_of_neighbours(tmp_path):
    glyphs = Glyphs(train_images=600, test_images=20)
    results = layershuffle.evaluate("mini_glyphs", glyphs, classifier="neighbours", protocols=["sequential"])
    with pytest.raises(UserError, match="vote"):
        layershuffle.export("mini_glyphs", tmp_path / "card", results=[results], data=Glyphs(test_images=8))


def test_a_backbone_without_a_classifier_is_judged(capsys):
    weights = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).state_dict()
    torch.save(weights, "backbone.pth")
    backbone = ["vit_tiny_patch16_224", "digits", "--pretrained=backbone.pth", "--img_size=32", "--accelerator=cpu"]
    few = ["--data.train_images=60", "--data.test_images=20"]
    assert "neighbours" in fails(capsys, evaluate_command, *backbone, *few)
    results = depth_command([*backbone, *few, "--classifier=neighbours", "--random_orders=1", "--repeats=1"])
    assert results.measure(EarlyExits)
    assert results.evaluation.classifier.images == 54  # those of 60 that aren't for validation

    loaded = layershuffle.load("vit_tiny_patch16_224", "backbone.pth", num_classes=0, img_size=32)
    data = Digits(train_images=60, test_images=20)
    # What needs no classifier needs none of this kind either.
    assert layershuffle.similarity(loaded, data, accelerator="cpu").scores == []
    contributions = layershuffle.analyse(loaded, data, study="contributions", images=3, accelerator="cpu")
    assert len(contributions.measures) == 1
    # The caller's model keeps its own classifier.
    voted = layershuffle.evaluate(loaded, data, classifier="neighbours", protocols=["sequential"], accelerator="cpu")
    assert loaded.model.classifier is None
    assert voted.scores[0].images == 20
