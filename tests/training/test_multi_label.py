"""Training, evaluation and prediction with several labels for each picture, from end to end."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import QUIET, configs, fails, train
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score
from torch.nn import functional as F

import layershuffle
from layershuffle.api.serve import serve
from layershuffle.checkpoints.checkpoint import read_checkpoint
from layershuffle.checkpoints.likely_classes import likely_classes
from layershuffle.commands.search import search_command
from layershuffle.commands.train import train_command
from layershuffle.data import ImageTable
from layershuffle.data.augmentation import Augmentation
from layershuffle.data.label_scores import f1_of_classes
from layershuffle.errors import UserError
from layershuffle.results import Results
from layershuffle.results.figures import overview
from layershuffle.results.measures import ByLabel
from layershuffle.training.objectives import Classification, MultiLabel

PARTS = {"top": np.s_[:3, :], "left": np.s_[:, :3], "right": np.s_[:, 6:]}
"""Where a picture is light that shows the class."""


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(80):
        names = [name for name in PARTS if rng.random() < 0.4]
        pixels = rng.integers(0, 100, (8, 8), dtype=np.uint8)
        for name in names:
            pixels[PARTS[name]] = 255
        Image.fromarray(pixels).save(folder / f"{index}.png")
        rows.append([f"{index}.png", ";".join(names), "train" if index < 60 else "test"])
    with open(folder / "parts.csv", "w", newline="") as file:
        csv.writer(file).writerows([["path", "label", "split"], *rows])
    return str(folder / "parts.csv")


def arguments(table, *more):
    return [
        *configs("model/mini_digits", "trainer/cpu", "optimizer/mini"),
        "--data=ImageTable",
        f"--data.table={table}",
        "--data.batch_size=10",
        "--data.workers=0",
        "--trainer.max_epochs=1",
        *QUIET,
        *more,
    ]


SEVERAL = ["--data.label_separator=;", "--model.objective=MultiLabel"]


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    position = ["--model.position=predict", f"--trainer.logger.save_dir={folder}"]
    return train(arguments(table, *SEVERAL, *position))


def test_a_training_selects_the_model_and_chooses_thresholds(trained, table):
    metrics = trained.callback_metrics
    assert 0 <= metrics["train/f1"] <= 1
    assert "train/accuracy" not in metrics
    metadata = read_checkpoint(trained.checkpoint_callback.best_model_path).metadata
    assert metadata.method == "layershuffle-predict"
    assert len(metadata.thresholds) == 3
    assert metadata.data.classes == ["left", "right", "top"]

    # What the validation of the only epoch was: the model in its base order on the validation images.
    loaded = layershuffle.load(trained.checkpoint_callback.best_model_path)
    data = ImageTable(table, label_separator=";", workers=0)
    logits, labels = logits_of(loaded, data, "val")
    expected = average_precision_score(labels, logits.sigmoid(), average="macro")
    assert float(metrics["val/sequential"]) == pytest.approx(expected, abs=1e-5)
    for threshold, probabilities in zip(metadata.thresholds, logits.sigmoid().unbind(dim=1)):
        assert float((probabilities - threshold).abs().min()) < 1e-4


def logits_of(loaded, data, split):
    """The logits in the base order, and the labels, of all images of a split."""
    preprocess = data.prepare_for(*loaded.model.image_format)
    data.setup("fit")
    with torch.inference_mode():
        pairs = [(loaded.model(preprocess(images)).logits, labels) for images, labels in data.loader(split)]
    logits, labels = zip(*pairs)
    return torch.cat(logits), torch.cat(labels)


@pytest.fixture(scope="module")
def results(trained):
    path = trained.checkpoint_callback.best_model_path
    return layershuffle.evaluate(path, random_orders=2, protocols=["sequential", "arbitrary"], accelerator="cpu")


def test_an_evaluation_has_average_precision_in_every_kind_of_order(trained, results, table):
    loaded = layershuffle.load(trained.checkpoint_callback.best_model_path)
    logits, labels = logits_of(loaded, ImageTable(table, label_separator=";", workers=0), "test")
    (score,) = results.of("sequential")
    assert score.map == pytest.approx(average_precision_score(labels, logits.sigmoid()), abs=1e-5)
    assert score.loss == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, labels.float())), abs=1e-5)
    assert (score.top1, score.top5, score.ece) == (None, None, None)
    assert score.position_accuracy is not None
    assert len(results.of("arbitrary")) == 3
    assert all(0 <= each.f1 <= 1 for each in results.scores)


def test_an_evaluation_tells_how_well_each_label_is_found(trained, results, table):
    loaded = layershuffle.load(trained.checkpoint_callback.best_model_path)
    logits, labels = logits_of(loaded, ImageTable(table, label_separator=";", workers=0), "test")
    by_label = results.measure(ByLabel)
    assert by_label.images == labels.sum(dim=0).tolist()
    sequential, arbitrary = by_label.orders
    expected = average_precision_score(labels, logits.sigmoid(), average=None)
    assert sequential.average_precision == pytest.approx(expected, abs=1e-5)
    named = logits.sigmoid() >= torch.tensor(loaded.info.thresholds)
    assert sequential.f1 == pytest.approx(f1_score(labels, named, average=None), abs=1e-5)

    # The mean over the labels of the mean over the two fixed orders is the mean of the scores of these orders.
    fixed = [score.map for score in results.of("arbitrary") if score.order]
    assert arbitrary.samples == len(fixed) == 2
    assert np.mean(arbitrary.average_precision) == pytest.approx(np.mean(fixed), abs=1e-5)

    # The label that is found worst comes first, in the table and at the top of the picture.
    rows = by_label.tables(results)["labels"].rows
    worst = by_label.label_names(results)[int(np.argmin(expected))]
    assert rows[0][0] == worst
    (axis,) = by_label.figure(results).axes
    assert axis.get_yticklabels()[0].get_text().startswith(worst)
    assert len(axis.patches) == 2 * 3


def test_a_label_that_nothing_shows_has_no_score(results):
    by_label = results.measure(ByLabel)
    scores = replace(by_label.orders[0], average_precision=[None, 0.5, 0.25], f1=[None, 0.5, 0.5])
    rows = replace(by_label, orders=[scores]).tables(results)["labels"].rows
    names = by_label.label_names(results)
    assert [row[0] for row in rows] == [names[2], names[1]]
    assert f1_of_classes(torch.tensor([[False, True]]), torch.tensor([[0, 1]])).isnan().tolist() == [True, False]


def test_results_are_written_read_and_shown_without_top1(results, tmp_path):
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").scores == results.scores
    content = json.loads((tmp_path / "results.json").read_text())
    assert not {"top1", "top5", "ece"} & content["scores"][0].keys()
    assert len(content["model"]["thresholds"]) == 3
    assert "mAP %" in str(results)
    assert "top-1" not in str(results)
    assert overview([results]).axes[0].get_ylabel() == "mean average precision, %"
    # Both kinds of columns, or none, can't be.
    columns = content["scores"][0]
    without = {name: values for name, values in columns.items() if name != "map"}
    for wrong in (without, {**columns, "top1": [0.5], "top5": [0.5]}):
        content["scores"][0] = wrong
        (tmp_path / "wrong.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="map"):
            Results.load(tmp_path / "wrong.json")


def test_a_prediction_names_all_labels_above_their_thresholds(trained, table, tmp_path):
    loaded = layershuffle.load(trained.checkpoint_callback.best_model_path)
    folder = table.rpartition("/")[0]
    pictures = [f"{folder}/{index}.png" for index in range(60, 80)]
    predictions = layershuffle.predict(loaded, pictures, top=1, accelerator="cpu")
    logits, _ = logits_of(loaded, ImageTable(table, label_separator=";", workers=0), "test")
    above = logits.sigmoid() >= torch.tensor(loaded.info.thresholds)
    for prediction, labels in zip(predictions, above.tolist()):
        expected = {name for name, is_above in zip(loaded.classes, labels) if is_above}
        assert {likely.name for likely in prediction.classes} == expected
    # One order disagrees with nobody. The formula of two, written out for one class:
    assert {prediction.disagreement for prediction in predictions} == {0.0}
    shares = [0.2, 0.8]
    entropy = -(0.2 * np.log(0.2) + 0.8 * np.log(0.8))
    found = likely_classes(torch.tensor(shares).logit().reshape(2, 1), ["a"], 1, [0.5])
    assert found.disagreement == pytest.approx(np.log(2) - entropy)
    # An exported model keeps its thresholds.
    layershuffle.export(loaded, tmp_path / "exported")
    assert layershuffle.load(tmp_path / "exported").info.thresholds == loaded.info.thresholds


def test_probabilities_are_means_over_orders():
    logits = torch.tensor([[2.0, -2.0, -1.0], [0.0, -2.0, 1.0]])
    first, second = likely_classes(logits, ["a", "b", "c"], 1, [0.6, 0.5, 0.5])
    assert (first.name, first.first) == ("a", 0.5)
    assert first.probability == pytest.approx(float(logits[:, 0].sigmoid().mean()))
    assert (second.name, second.first) == ("c", 0.5)
    assert second.probability == pytest.approx(0.5)


def test_label_smoothing_is_that_of_the_formula():
    logits = torch.tensor([[2.0, -1.0]])
    loss, _ = MultiLabel(label_smoothing=0.2).class_loss(logits, torch.tensor([[1, 0]]), logits)
    yes = -(0.9 * logits[0, 0].sigmoid().log() + 0.1 * (-logits[0, 0]).sigmoid().log())
    no = -(0.1 * logits[0, 1].sigmoid().log() + 0.9 * (-logits[0, 1]).sigmoid().log())
    assert float(loss) == pytest.approx(float(yes + no) / 2)


def test_objective_and_data_must_agree(table):
    one = ImageTable(table)
    several = ImageTable(table, label_separator=";")
    with pytest.raises(UserError, match="MultiLabel"):
        Classification().check_labels(several)
    with pytest.raises(UserError, match="label_separator"):
        MultiLabel().check_labels(one)
    Classification().check_labels(one)
    MultiLabel().check_labels(several)


def test_what_takes_one_label_refuses_several_in_one_line(trained, table, capsys):
    path = trained.checkpoint_callback.best_model_path
    assert "several labels" in fails(capsys, search_command, path)
    assert "MultiLabel" in fails(capsys, train_command, *arguments(table, SEVERAL[0]))
    with pytest.raises(UserError, match="several labels for each image, but"):
        layershuffle.evaluate(path, "digits")
    with pytest.raises(UserError, match="use predict"):
        serve(path)


def test_mixed_images_have_mixed_labels():
    torch.manual_seed(0)
    mix = Augmentation(mixup=1.0).of_batch(num_classes=2)
    images, labels = mix(torch.rand(2, 1, 4, 4), torch.tensor([[1, 0], [1, 1]], dtype=torch.uint8))
    assert labels.dtype == torch.float32
    assert labels[:, 0].tolist() == [1, 1]
    assert 0 < labels[0, 1] < 1
    assert MultiLabel().class_loss(images, labels, torch.zeros(2, 2))[0] == pytest.approx(np.log(2))
