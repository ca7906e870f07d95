"""Pictures that are classified by the command and in Python, against the model's own logits."""

import csv
import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUIET, SMALL, fails, fake_imagenet, reference_folder
from PIL import Image
from torchvision import transforms

import layershuffle
from layershuffle.api.predict import Prediction, Predictions
from layershuffle.checkpoints import named
from layershuffle.checkpoints.export import export
from layershuffle.checkpoints.likely_classes import LikelyClass
from layershuffle.commands.evaluate import evaluate_command
from layershuffle.commands.logs import set_up_logging
from layershuffle.commands.predict import as_csv, predict_command
from layershuffle.commands.train import train_command
from layershuffle.errors import UserError
from layershuffle.orders import Order, seeded
from layershuffle.results import ModelInfo
from layershuffle.results.figures import rendered
from layershuffle.results.measures import ByClassCounts

rng = np.random.default_rng(0)
CLASSES = ["cat", "dog", "emu", "fox", "gnu"]
MEAN = STD = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkpoint(small):
    """Writes a checkpoint as training leaves it; returns the model in it."""

    def make(path="best.ckpt", data=None, **arguments):
        model = small(**{"in_chans": 3, **arguments})
        with torch.no_grad():
            for parameter in model.layers.parameters():
                parameter.mul_(3)  # so that the order of the layers matters
        content = {"model": model.config, "data": {"class": "ImageFolders", "args": {}, "classes": CLASSES}}
        content["data"] |= data or {}
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": weights, "layershuffle": content}, path)
        return model

    return make


@pytest.fixture
def pictures():
    """Pictures of several sizes and modes in a folder, also as PIL images."""
    found = {}
    for at, mode in enumerate(("RGB", "L", "P", "CMYK", "RGB", "RGB")):
        image = Image.fromarray(rng.integers(0, 256, (20 + 3 * at, 30, 3), dtype=np.uint8)).convert(mode)
        path = Path("pictures") / f"sub{at % 2}" / f"{at}.{'tif' if mode == 'CMYK' else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        found[str(path)] = image
    return found


def probabilities(model, images, order=None):
    """As torchvision preprocesses."""
    resized = [transforms.Resize(8), transforms.CenterCrop(8)]
    prepared = transforms.Compose([*resized, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    with torch.inference_mode():
        return model(torch.stack([prepared(image.convert("RGB")) for image in images]), order).logits.softmax(dim=-1)


def close(one, other):
    return one == pytest.approx(other, abs=1e-5)


def test_a_model_predicts_in_python(checkpoint, pictures):
    model = checkpoint()
    loaded = layershuffle.load("best.ckpt")
    assert loaded.classes == CLASSES
    assert loaded.order == Order("0 1 2 3")
    images = [*pictures.values()]
    assert loaded.preprocess(images).shape == (6, 3, 8, 8)
    for order in (None, "3 1 2", [0, 0, 1]):
        expected = probabilities(model, images, order)
        found = loaded.predict(images, top=3, order=order)
        assert [len(classes) for classes in found] == [3] * 6
        for classes, row in zip(found, expected):
            assert [likely.name for likely in classes] == [CLASSES[label] for label in row.argsort(descending=True)[:3]]
            assert all(close(likely.probability, row[CLASSES.index(likely.name)].item()) for likely in classes)
    assert len(loaded.predict(images[:1], top=100)[0]) == 5
    with pytest.raises(ValueError, match="layer 9"):
        loaded.predict(images, order="9")
    with pytest.raises(ValueError, match="needs at least one layer"):
        loaded.predict(images, order="")


def test_a_model_predicts_a_path_a_folder_or_one_picture(checkpoint, pictures, tmp_path):
    checkpoint()
    loaded = layershuffle.load("best.ckpt")
    folder = tmp_path / "to_predict"
    (folder / "more").mkdir(parents=True)
    images = [image.convert("RGB") for image in list(pictures.values())[:2]]
    images[0].save(folder / "a.png")
    images[1].save(folder / "more" / "b.png")
    # Links in a circle lead nowhere new.
    (folder / "more" / "up").symlink_to(folder)
    expected = loaded.predict(images)
    assert loaded.predict(folder) == expected
    assert loaded.predict([str(folder / "a.png"), images[1]]) == expected
    assert loaded.predict(images[0]) == loaded.predict(str(folder / "a.png")) == loaded.predict(images[:1])

    in_two = loaded.predict(images[0], top=5, orders=["3 1 2", [0, 0, 1]])
    singly = [loaded.predict(images[0], top=5, order=order) for order in ("3 1 2", [0, 0, 1])]
    by_name = [{likely.name: likely.probability for likely in found[0]} for found in singly]
    for likely in in_two[0]:
        assert close(likely.probability, sum(found[likely.name] for found in by_name) / 2)
    # The mutual information: the entropy of the mean less the mean of the entropies.
    each = torch.tensor([[found[name] for name in CLASSES] for found in by_name])
    entropies = torch.special.entr(each).sum(dim=-1)
    assert close(in_two[0].disagreement, float(torch.special.entr(each.mean(dim=0)).sum() - entropies.mean()))
    assert in_two[0].disagreement > 0
    assert singly[0][0].disagreement == 0

    (folder / "c.png").write_bytes(b"no picture")
    for wrong, complaint in (("nowhere", "no file or folder"), (folder / "c.png", "c.png can't be read")):
        with pytest.raises(UserError, match=complaint):
            loaded.predict(wrong)
    with pytest.raises(UserError, match="orders"):
        loaded.predict(images, order="1", orders=["2"])


def test_pictures_are_preprocessed_as_in_training(checkpoint, pictures, small):
    images = [*pictures.values()]
    checkpoint("grey.ckpt", in_chans=1)
    grey = layershuffle.load("grey.ckpt").preprocess(images[:1])
    resized = transforms.Compose([transforms.Grayscale(), transforms.Resize(8), transforms.CenterCrop(8)])(images[0])
    assert torch.equal(grey, (transforms.ToTensor()(resized)[None] - 0.5) / 0.5)
    resizing = {"crop_pct": 0.5, "interpolation": "bicubic", "crop_mode": "squash"}
    checkpoint("squashed.ckpt", data={"args": resizing})
    squash = transforms.Resize([16, 16], transforms.InterpolationMode.BICUBIC)
    by_hand = transforms.Compose([squash, transforms.CenterCrop(8), transforms.ToTensor()])(images[0])
    assert torch.equal(layershuffle.load("squashed.ckpt").preprocess(images[:1]), (by_hand[None] - 0.5) / 0.5)
    for wrong in ({"crop_pct": "all"}, {"crop_pct": 0}, {"interpolation": "none"}, {"crop_mode": []}):
        checkpoint("damaged.ckpt", data={"args": wrong})
        with pytest.raises(ValueError, match=r"damaged\.ckpt.*preprocessed"):
            layershuffle.load("damaged.ckpt").predict(images)


@pytest.mark.parametrize("classes", [None, CLASSES[:3], "abcde", [1, 2, 3, 4, 5]])
def test_classes_without_names_are_numbered(checkpoint, pictures, classes):
    checkpoint(data={"classes": classes})
    loaded = layershuffle.load("best.ckpt")
    assert loaded.classes == ["0", "1", "2", "3", "4"]


def test_the_authors_class_names(tmp_path):
    folder = reference_folder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    assert layershuffle.load(str(folder)).classes == [*config["id2label"].values()]


def test_the_command_predicts_what_the_model_does(checkpoint, pictures, capsys):
    model = checkpoint()
    Path("pictures/notes.txt").write_text("no image")
    arguments = ["best.ckpt", "pictures", "--top=2", "--order=backwards"]
    predict_command([*arguments, "--output=p.csv"])
    capsys.readouterr()
    predictions = predict_command([*arguments, "--output=p.json"])
    said = capsys.readouterr()
    assert "files left out: 1\n  pictures/notes.txt: no image that Pillow can read\n" in said.err
    assert [prediction.path for prediction in predictions] == sorted(pictures)
    content = json.loads(Path("p.json").read_text())
    assert content["orders"] == ["3 2 1 0"]
    for prediction, entry in zip(predictions, content["pictures"], strict=True):
        assert entry["picture"] == prediction.path
        assert entry["disagreement"] == 0  # a single order agrees with itself
        for likely, class_entry in zip(prediction.classes, entry["classes"], strict=True):
            assert class_entry["class"] == likely.name
            assert class_entry["probability"] == round(likely.probability, 6)
            assert class_entry["share_of_orders"] == likely.first
    with Path("p.csv").open() as file:
        rows = [*csv.DictReader(file)]
    expected = probabilities(model, [pictures[prediction.path] for prediction in predictions], "3 2 1 0")
    lines = said.out.splitlines()
    for index, (prediction, row, line) in enumerate(zip(predictions, expected, lines, strict=True)):
        best = row.argsort(descending=True)[:2].tolist()
        assert [likely.name for likely in prediction.classes] == [CLASSES[label] for label in best]
        assert all(close(likely.probability, row[label].item()) for likely, label in zip(prediction.classes, best))
        named = "; ".join(f"{likely.probability:.1%} {likely.name}" for likely in prediction.classes)
        assert line == str(prediction) == f"{prediction.path}: {named}"
        for rank, likely in enumerate(prediction.classes, 1):
            written = rows[2 * index + rank - 1]
            assert (written["picture"], written["rank"], written["class"]) == (
                prediction.path,
                str(rank),
                likely.name,
            )
            assert float(written["probability"]) == round(likely.probability, 6)


def test_many_orders_are_averaged_and_counted(checkpoint, pictures, capsys):
    model = checkpoint()
    one = next(iter(pictures))
    # Worker processes read them if there are more than a batch.
    predictions = predict_command(["best.ckpt", one, "pictures", "--random_orders=6", "--seed=3", "--batch_size=4"])
    assert len(predictions) == len(pictures)
    drawn = [Order(range(4)).shuffled(seeded(3, "arbitrary", draw)) for draw in range(6)]
    images = [pictures[prediction.path] for prediction in predictions]
    each = torch.stack([probabilities(model, images, order) for order in drawn])
    lines = capsys.readouterr().out.splitlines()
    votes = []
    # The mutual information: the entropy of the mean less the mean of the entropies.
    mean = each.mean(dim=0)
    entropy_of_mean = -(mean * mean.log()).sum(dim=-1)
    disagreements = entropy_of_mean + (each * each.log()).sum(dim=-1).mean(dim=0)
    for index, prediction in enumerate(predictions):
        assert prediction.disagreement == pytest.approx(disagreements[index].item(), abs=1e-4)
        assert lines[index].endswith(f"; disagreement {prediction.disagreement:.3f}")
        for likely in prediction.classes:
            label = CLASSES.index(likely.name)
            first = int((each[:, index].argmax(dim=-1) == label).sum())
            votes.append(first)
            assert close(likely.probability, each[:, index, label].mean().item())
            assert close(likely.first, first / 6)
            assert (f"{likely.name} (first in {first} of 6 orders)" in lines[index]) == (first > 0)
    assert sum(votes) == 6 * len(pictures)
    assert {*votes} - {0, 6}  # in some pictures the orders disagree


def test_images_that_choose_their_orders(checkpoint, pictures):
    model = checkpoint(choices=["0 1 2 3", "3 2 1 0"])
    predictions = predict_command(["best.ckpt", "pictures"])
    assert predictions.orders == []
    expected = probabilities(model, [pictures[prediction.path] for prediction in predictions])
    likeliest = [prediction.classes[0].name for prediction in predictions]
    assert likeliest == [CLASSES[row.argmax()] for row in expected]


def test_broken_pictures_are_named_and_skipped(checkpoint, pictures, capsys):
    checkpoint()
    whole = Path(next(iter(pictures)))
    broken = [whole.with_name("broken.png"), whole.with_name("no_image.jpg")]
    broken[0].write_bytes(whole.read_bytes()[:200])
    broken[1].write_text("no image")
    predictions = predict_command(["best.ckpt", "pictures", "--output", "p.json"])
    assert [prediction.path for prediction in predictions] == sorted(pictures)
    said = capsys.readouterr().err
    assert all(f"{path} can't be read as an image (" in said for path in broken)
    unreadable = json.loads(Path("p.json").read_text())["unreadable"]
    assert [entry["picture"] for entry in unreadable] == [str(path) for path in broken]
    line = fails(capsys, predict_command, "best.ckpt", *map(str, broken))
    assert line == "error: no picture could be read"


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["nowhere.jpg"], "nowhere.jpg"),
        (["empty"], "empty"),
        (["pictures", "--order=0", "--random_orders=2"], "--random_orders"),
        (["pictures", "--order=7"], "layer 7"),
        (["pictures", "--order="], "needs at least one layer"),
        (["pictures", "--order=", "--random_orders=2"], "--random_orders"),
        (["pictures", "--output=p.txt"], "--output p.txt"),
        (["pictures", "--top=0"], "--top is a whole number above 0, not 0"),
        (["pictures", "--top=x"], "--top is a whole number, not x"),
    ],
)
def test_what_can_not_be_predicted(checkpoint, pictures, capsys, args, complaint):
    checkpoint()
    Path("empty").mkdir()
    assert complaint in fails(capsys, predict_command, "best.ckpt", *args)


def test_training_says_what_it_found_and_keeps_the_class_names(tmp_path, capsys):
    root = fake_imagenet(tmp_path / "fish")
    small = [f"--model.timm_args.{name}={value}" for name, value in (SMALL | {"in_chans": 3}).items()]
    data = ["--data=ImageFolders", f"--data.root={root}", "--data.workers=0", "--data.batch_size=4"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    train_command(["--model.name=vit_tiny_patch16_224", *small, *data, *trainer, *QUIET])
    said = " ".join(capsys.readouterr().err.split())
    assert "fish: 2 classes; 9 training, 1 validation, 10 test images; the validation images are held out" in said
    assert said.index("fish: 2 classes") < said.index("cost: ")
    loaded = layershuffle.load("runs/version_0/checkpoints/last.ckpt")
    assert loaded.classes == ["n01440764", "n01443537"]
    evaluate = ["runs/version_0/checkpoints/last.ckpt", "--protocols=sequential", "--data.workers=0"]
    results = evaluate_command(evaluate)
    assert results.measure(ByClassCounts).class_names(results) == loaded.classes
    # Matplotlib would read the one as a formula, and has no glyphs for the other.
    results.data.classes[:] = [r"$\frac$", "日本"]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        set_up_logging()
        rendered(results.measure(ByClassCounts).figure(results), "png")
    assert not warned
    export(loaded, Path("exported"))
    picture = [Image.open(root / "val/n01440764/RGB.JPEG")]
    exported = layershuffle.load("exported")
    assert exported.classes == loaded.classes
    assert exported.predict(picture) == loaded.predict(picture)


def test_timms_models_know_the_classes_of_imagenet(monkeypatch):
    make = named.create_model
    monkeypatch.setattr(named, "create_model", lambda name, classes, pretrained: make(name, classes))
    loaded = layershuffle.load("vit_tiny_patch16_224")
    assert len(loaded.classes) == 1000
    assert (loaded.classes[0], loaded.classes[999]) == (
        "tench, Tinca tinca",
        "toilet tissue, toilet paper, bathroom tissue",
    )


def test_files_are_written_before_lines_that_nobody_may_read(checkpoint, pictures, monkeypatch, capsys):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    checkpoint()
    monkeypatch.setattr("sys.stdout", Closed())
    with pytest.raises(BrokenPipeError):
        predict_command(["best.ckpt", "pictures", "--output", "found.csv"])
    assert len(Path("found.csv").read_text().splitlines()) == 1 + 5 * len(pictures)
    # On a busy machine, lines of progress stand before it.
    assert capsys.readouterr().err.endswith("predictions: found.csv\n")


def test_what_can_not_be_written_is_printed(checkpoint, pictures, monkeypatch, capsys):
    checkpoint()
    Path("file").touch()
    assert "file" in fails(capsys, predict_command, "best.ckpt", "pictures", "--output=file/found.csv")

    def fail(path, content):
        raise UserError(f"{path} could not be written: No space left on device")

    monkeypatch.setattr("layershuffle.commands.predict.write_whole", fail)
    with pytest.raises(UserError, match="No space left"):
        predict_command(["best.ckpt", "pictures", "--output", "found.csv"])
    assert len(capsys.readouterr().out.splitlines()) == len(pictures)


def test_names_that_spreadsheets_or_utf_8_do_not_take():
    classes = (LikelyClass("=1+1", 0.9991, 1.0), LikelyClass("b", 0.0004, 0.0), LikelyClass("c", 0.0, 0.0))
    found = Predictions(ModelInfo(name="best", config={}), [], [Prediction("caf\udce9.png", classes)], [])
    header, first, *_ = csv.reader(io.StringIO(as_csv(found)))
    assert header[-2:] == ["share_of_orders", "disagreement"]
    assert first == ["caf\\udce9.png", "1", "'=1+1", "0.9991", "1.0", "0.0"]
    assert str(found).endswith(": 99.9% =1+1; <0.1% b; 0.0% c")
