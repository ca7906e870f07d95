"""Training, evaluation and prediction with several labels for each picture, from end to end."""

import csv
import json
from dataclasses import replace
from pathlib import Path

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
    """Writes 80 pictures and the table of their labels, of which each has none to three; returns the table's path."""
    folder = tmp_path_factory.mktemp("parts")
    rng = np.random.default_rng(0)
    rows = [["path", "label", "split"]]
    for index in range(80):
        names = [name for name in PARTS if rng.random() < 0.4]
        pixels = rng.integers(0, 100, (8, 8), dtype=np.uint8)
        for name in names:
            pixels[PARTS[name]] = 255
        Image.fromarray(pixels).save(folder / f"{index}.png")
        split = "train" if index < 60 else "test"
        rows.append([f"{index}.png", ";".join(names), split])

    with open(folder / "parts.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(folder / "parts.csv")


def arguments(table, *more):
    """The command line of a training of one epoch on the table."""
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


SEPARATOR = "--data.label_separator=;"


@pytest.fixture(scope="module")
def trained(table, tmp_path_factory):
    """The trainer of a finished training."""
    folder = tmp_path_factory.mktemp("runs")
    options = [SEPARATOR, "--model.objective=MultiLabel", "--model.position=predict"]
    return train(arguments(table, *options, f"--trainer.logger.save_dir={folder}"))


@pytest.fixture(scope="module")
def checkpoint(trained):
    """The path of the trained model."""
    return trained.checkpoint_callback.best_model_path


def logits_of(loaded, table, split):
    """The logits in the base order, and the labels, of all images of a split of the table."""
    data = ImageTable(table, label_separator=";", workers=0)
    preprocess = data.prepare_for(*loaded.model.image_format)
    data.setup("fit")
    logits = []
    labels = []
    with torch.inference_mode():
        for images, labels_of_batch in data.loader(split):
            logits.append(loaded.model(preprocess(images)).logits)
            labels.append(labels_of_batch)
    return torch.cat(logits), torch.cat(labels)


def test_a_training_selects_the_model_and_chooses_thresholds(trained, checkpoint, table):
    metrics = trained.callback_metrics
    assert 0 <= metrics["train/f1"] <= 1
    assert "train/accuracy" not in metrics
    metadata = read_checkpoint(checkpoint).metadata
    assert metadata.method == "layershuffle-predict"
    assert len(metadata.thresholds) == 3
    assert metadata.data.classes == ["left", "right", "top"]

    # What the validation of the only epoch was: the model in its base order on the validation images.
    logits, labels = logits_of(layershuffle.load(checkpoint), table, "val")
    probabilities = logits.sigmoid()
    expected = average_precision_score(labels, probabilities, average="macro")
    assert float(trained.callback_metrics["val/sequential"]) == pytest.approx(expected, abs=1e-5)
    # Each threshold is the probability of an image.
    for threshold, of_images in zip(metadata.thresholds, probabilities.unbind(dim=1)):
        assert float((of_images - threshold).abs().min()) < 1e-4


@pytest.fixture(scope="module")
def results(checkpoint):
    """The evaluation of the trained model, in the sequential order and in arbitrary ones, of which two are fixed."""
    return layershuffle.evaluate(checkpoint, random_orders=2, protocols=["sequential", "arbitrary"], accelerator="cpu")


def test_an_evaluation_has_average_precision_in_every_kind_of_order(checkpoint, results, table):
    logits, labels = logits_of(layershuffle.load(checkpoint), table, "test")
    (score,) = results.of("sequential")
    assert score.map == pytest.approx(average_precision_score(labels, logits.sigmoid()), abs=1e-5)
    assert score.loss == pytest.approx(float(F.binary_cross_entropy_with_logits(logits, labels.float())), abs=1e-5)
    assert (score.top1, score.top5, score.ece) == (None, None, None)
    assert score.position_accuracy is not None

    # The two fixed orders, and one for each batch.
    assert len(results.of("arbitrary")) == 3
    assert all(0 <= each.f1 <= 1 for each in results.scores)


def test_an_evaluation_tells_how_well_each_label_is_found(checkpoint, results, table):
    loaded = layershuffle.load(checkpoint)
    logits, labels = logits_of(loaded, table, "test")
    probabilities = logits.sigmoid()
    by_label = results.measure(ByLabel)
    assert by_label.images == labels.sum(dim=0).tolist()

    sequential, arbitrary = by_label.orders
    expected = average_precision_score(labels, probabilities, average=None)
    assert sequential.average_precision == pytest.approx(expected, abs=1e-5)
    named = probabilities >= torch.tensor(loaded.info.thresholds)
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
    assert len(axis.patches) == 2 * 3  # a bar for each of the two kinds of orders and three labels


def test_a_label_that_nothing_shows_has_no_score(results):
    by_label = results.measure(ByLabel)
    _, second, third = by_label.label_names(results)
    scores = replace(by_label.orders[0], average_precision=[None, 0.5, 0.25], f1=[None, 0.5, 0.5])
    rows = replace(by_label, orders=[scores]).tables(results)["labels"].rows
    assert [row[0] for row in rows] == [third, second]  # the worst first, and not the one without a score

    f1 = f1_of_classes(torch.tensor([[False, True]]), torch.tensor([[0, 1]]))
    assert f1.isnan().tolist() == [True, False]


def test_results_are_written_read_and_shown_without_top1(results, tmp_path):
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json").scores == results.scores
    content = json.loads((tmp_path / "results.json").read_text())
    columns = content["scores"][0]
    assert not {"top1", "top5", "ece"} & columns.keys()
    assert len(content["model"]["thresholds"]) == 3
    assert "mAP %" in str(results)
    assert "top-1" not in str(results)
    assert overview([results]).axes[0].get_ylabel() == "mean average precision, %"

    # Scores have the columns of several labels or those of one, neither none nor both.
    neither = {name: values for name, values in columns.items() if name != "map"}
    both = {**columns, "top1": [0.5], "top5": [0.5]}
    for wrong in (neither, both):
        content["scores"][0] = wrong
        (tmp_path / "wrong.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="map"):
            Results.load(tmp_path / "wrong.json")


def test_a_prediction_names_all_labels_above_their_thresholds(checkpoint, table, tmp_path):
    loaded = layershuffle.load(checkpoint)
    folder = Path(table).parent
    pictures = [str(folder / f"{index}.png") for index in range(60, 80)]  # the test images
    predictions = layershuffle.predict(loaded, pictures, top=1, accelerator="cpu")

    logits, _ = logits_of(loaded, table, "test")
    above = logits.sigmoid() >= torch.tensor(loaded.info.thresholds)
    for prediction, above_of_image in zip(predictions, above.tolist()):
        expected = {name for name, is_above in zip(loaded.classes, above_of_image) if is_above}
        assert {likely.name for likely in prediction.classes} == expected

    # One order disagrees with nobody. The formula for two orders, written out for one class that they find unlikely and
    # likely: the entropy of their mean, 1/2, less the mean of their entropies.
    assert {prediction.disagreement for prediction in predictions} == {0.0}
    probabilities = torch.tensor([0.2, 0.8])
    entropy_of_each = -(0.2 * np.log(0.2) + 0.8 * np.log(0.8))
    likely = likely_classes(probabilities.logit().reshape(2, 1), ["a"], 1, [0.5])
    assert likely.disagreement == pytest.approx(np.log(2) - entropy_of_each)

    # An exported model keeps its thresholds.
    layershuffle.export(loaded, tmp_path / "exported")
    assert layershuffle.load(tmp_path / "exported").info.thresholds == loaded.info.thresholds


def test_probabilities_are_means_over_orders():
    logits = torch.tensor([[2.0, -2.0, -1.0], [0.0, -2.0, 1.0]])  # of two orders and three classes
    thresholds = [0.6, 0.5, 0.5]
    first, second = likely_classes(logits, ["a", "b", "c"], 1, thresholds)

    # Of two orders, one is above the threshold.
    assert (first.name, first.first) == ("a", 0.5)
    assert first.probability == pytest.approx(float(logits[:, 0].sigmoid().mean()))
    assert (second.name, second.first) == ("c", 0.5)
    assert second.probability == pytest.approx(0.5)


def test_label_smoothing_is_that_of_the_formula():
    logits = torch.tensor([[2.0, -1.0]])
    labels = torch.tensor([[1, 0]])
    loss, _ = MultiLabel(label_smoothing=0.2).class_loss(logits, labels, logits)

    # Smoothed by 0.2, the labels 1 and 0 are 0.9 and 0.1.
    first, second = logits[0]
    loss_of_first = -(0.9 * first.sigmoid().log() + 0.1 * (-first).sigmoid().log())
    loss_of_second = -(0.1 * second.sigmoid().log() + 0.9 * (-second).sigmoid().log())
    assert float(loss) == pytest.approx(float(loss_of_first + loss_of_second) / 2)


def test_objective_and_data_must_agree(table):
    one = ImageTable(table)
    several = ImageTable(table, label_separator=";")
    with pytest.raises(UserError, match="MultiLabel"):
        Classification().check_labels(several)
    with pytest.raises(UserError, match="label_separator"):
        MultiLabel().check_labels(one)
    Classification().check_labels(one)
    MultiLabel().check_labels(several)


def test_what_takes_one_label_refuses_several_in_one_line(checkpoint, table, capsys):
    assert "several labels" in fails(capsys, search_command, checkpoint)
    assert "MultiLabel" in fails(capsys, train_command, *arguments(table, SEPARATOR))
    with pytest.raises(UserError, match="several labels for each image, but"):
        layershuffle.evaluate(checkpoint, "digits")
    with pytest.raises(UserError, match="use predict"):
        serve(checkpoint)


def test_mixed_images_have_mixed_labels():
    torch.manual_seed(0)
    mix = Augmentation(mixup=1.0).of_batch(num_classes=2)
    images, labels = mix(torch.rand(2, 1, 4, 4), torch.tensor([[1, 0], [1, 1]], dtype=torch.uint8))

    assert labels.dtype == torch.float32
    assert labels[:, 0].tolist() == [1, 1]  # both images had the first label
    assert 0 < labels[0, 1] < 1
    # With logits of 0 all probabilities are 1/2, so that any labels have the same loss.
    loss, _ = MultiLabel().class_loss(images, labels, torch.zeros(2, 2))
    assert loss == pytest.approx(np.log(2))
