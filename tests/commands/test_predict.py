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
MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def checkpoint(small):
    """Writes a checkpoint as training leaves it; returns the model in it."""

    def make(path="best.ckpt", data=None, in_chans=3, **arguments):
        model = small(in_chans=in_chans, **arguments)
        with torch.no_grad():
            for parameter in model.layers.parameters():
                parameter.mul_(3)  # so that the order of the layers matters
        about_data = {"class": "ImageFolders", "args": {}, "classes": CLASSES}
        if data is not None:
            about_data |= data
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        torch.save({"state_dict": weights, "layershuffle": {"model": model.config, "data": about_data}}, path)
        return model

    return make


@pytest.fixture
def pictures():
    """Makes pictures of several sizes and modes in a folder; returns them as PIL images, by their paths."""
    by_path = {}
    for number, mode in enumerate(("RGB", "L", "P", "CMYK", "RGB", "RGB")):
        pixels = rng.integers(0, 256, (20 + 3 * number, 30, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(mode)
        suffix = "tif" if mode == "CMYK" else "png"  # PNG has no CMYK
        path = Path("pictures") / f"sub{number % 2}" / f"{number}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        by_path[str(path)] = image
    return by_path


def probabilities(model, images, order=None):
    """The probabilities of the classes, [image, class], of PIL images that torchvision preprocesses."""
    preprocess = transforms.Compose(
        [
            transforms.Resize(8),
            transforms.CenterCrop(8),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    batch = torch.stack([preprocess(image.convert("RGB")) for image in images])
    with torch.inference_mode():
        return model(batch, order).logits.softmax(dim=-1)


def close(one, other):
    return one == pytest.approx(other, abs=1e-5)


def test_a_model_predicts_in_python(checkpoint, pictures):
    model = checkpoint()
    loaded = layershuffle.load("best.ckpt")
    assert loaded.classes == CLASSES
    assert loaded.order == Order("0 1 2 3")
    images = list(pictures.values())
    assert loaded.preprocess(images).shape == (6, 3, 8, 8)

    for order in (None, "3 1 2", [0, 0, 1]):
        expected = probabilities(model, images, order)
        predictions = loaded.predict(images, top=3, order=order)
        assert [len(prediction) for prediction in predictions] == [3] * 6
        for prediction, row in zip(predictions, expected):
            likeliest = row.argsort(descending=True)[:3]
            assert [likely.name for likely in prediction] == [CLASSES[label] for label in likeliest]
            for likely, label in zip(prediction, likeliest):
                assert close(likely.probability, row[label].item())

    (prediction,) = loaded.predict(images[:1], top=100)
    assert len(prediction) == len(CLASSES)
    with pytest.raises(ValueError, match="layer 9"):
        loaded.predict(images, order="9")
    with pytest.raises(ValueError, match="needs at least one layer"):
        loaded.predict(images, order="")


def test_a_model_predicts_a_path_a_folder_or_one_picture(checkpoint, pictures, tmp_path):
    checkpoint()
    loaded = layershuffle.load("best.ckpt")
    folder = tmp_path / "to_predict"
    (folder / "more").mkdir(parents=True)
    first, second = [image.convert("RGB") for image in list(pictures.values())[:2]]
    first.save(folder / "a.png")
    second.save(folder / "more" / "b.png")
    # Links in a circle lead nowhere new.
    (folder / "more" / "up").symlink_to(folder)

    expected = loaded.predict([first, second])
    assert loaded.predict(folder) == expected
    assert loaded.predict([str(folder / "a.png"), second]) == expected
    alone = loaded.predict([first])
    assert loaded.predict(first) == alone
    assert loaded.predict(str(folder / "a.png")) == alone

    # In two orders, each class has the mean of its probabilities.
    orders = ["3 1 2", [0, 0, 1]]
    (prediction,) = loaded.predict(first, top=5, orders=orders)
    in_each_order = []
    for order in orders:
        (in_one_order,) = loaded.predict(first, top=5, order=order)
        assert in_one_order.disagreement == 0
        by_name = {likely.name: likely.probability for likely in in_one_order}
        in_each_order.append([by_name[name] for name in CLASSES])
    in_each_order = torch.tensor(in_each_order)
    mean = in_each_order.mean(dim=0)
    for likely in prediction:
        assert close(likely.probability, float(mean[CLASSES.index(likely.name)]))
    # The mutual information: the entropy of the mean less the mean of the entropies.
    entropy_of_mean = torch.special.entr(mean).sum()
    entropies = torch.special.entr(in_each_order).sum(dim=-1)
    assert close(prediction.disagreement, float(entropy_of_mean - entropies.mean()))
    assert prediction.disagreement > 0

    with pytest.raises(UserError, match="no file or folder"):
        loaded.predict("nowhere")
    (folder / "c.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="c.png can't be read"):
        loaded.predict(folder / "c.png")
    with pytest.raises(UserError, match="orders"):
        loaded.predict(first, order="1", orders=["2"])


def test_pictures_are_preprocessed_as_in_training(checkpoint, pictures, small):
    picture = next(iter(pictures.values()))

    checkpoint("grey.ckpt", in_chans=1)
    (preprocessed,) = layershuffle.load("grey.ckpt").preprocess([picture])
    by_hand = transforms.Compose(
        [transforms.Grayscale(), transforms.Resize(8), transforms.CenterCrop(8), transforms.ToTensor()]
    )
    assert torch.equal(preprocessed, (by_hand(picture) - 0.5) / 0.5)

    # To crop half of each side to 8 pixels, both sides are squashed to 16.
    resizing = {"crop_pct": 0.5, "interpolation": "bicubic", "crop_mode": "squash"}
    checkpoint("squashed.ckpt", data={"args": resizing})
    (preprocessed,) = layershuffle.load("squashed.ckpt").preprocess([picture])
    squash = transforms.Resize([16, 16], transforms.InterpolationMode.BICUBIC)
    by_hand = transforms.Compose([squash, transforms.CenterCrop(8), transforms.ToTensor()])
    assert torch.equal(preprocessed, (by_hand(picture) - 0.5) / 0.5)

    for wrong in ({"crop_pct": "all"}, {"crop_pct": 0}, {"interpolation": "none"}, {"crop_mode": []}):
        checkpoint("damaged.ckpt", data={"args": wrong})
        with pytest.raises(ValueError, match=r"damaged\.ckpt.*preprocessed"):
            layershuffle.load("damaged.ckpt").predict([picture])


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
    capsys.readouterr()  # the second call prints the same
    predictions = predict_command([*arguments, "--output=p.json"])
    said = capsys.readouterr()
    assert "files left out: 1\n  pictures/notes.txt: no image that Pillow can read\n" in said.err
    assert [prediction.path for prediction in predictions] == sorted(pictures)

    # The predictions are those of the model, and are printed.
    expected = probabilities(model, [pictures[prediction.path] for prediction in predictions], "3 2 1 0")
    lines = said.out.splitlines()
    for prediction, row, line in zip(predictions, expected, lines, strict=True):
        best_two = row.argsort(descending=True)[:2].tolist()
        assert [likely.name for likely in prediction.classes] == [CLASSES[label] for label in best_two]
        for likely, label in zip(prediction.classes, best_two):
            assert close(likely.probability, row[label].item())
        named = "; ".join(f"{likely.probability:.1%} {likely.name}" for likely in prediction.classes)
        assert line == f"{prediction.path}: {named}"
        assert line == str(prediction)

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
        rows = iter(list(csv.DictReader(file)))
    for prediction in predictions:
        for rank, likely in enumerate(prediction.classes, 1):
            row = next(rows)
            assert row["picture"] == prediction.path
            assert row["rank"] == str(rank)
            assert row["class"] == likely.name
            assert float(row["probability"]) == round(likely.probability, 6)


def test_many_orders_are_averaged_and_counted(checkpoint, pictures, capsys):
    model = checkpoint()
    # A picture that is named twice counts once. Worker processes read them if there are more than a batch.
    named_twice = next(iter(pictures))
    options = ["--random_orders=6", "--seed=3", "--batch_size=4"]
    predictions = predict_command(["best.ckpt", named_twice, "pictures", *options])
    assert len(predictions) == len(pictures)
    lines = capsys.readouterr().out.splitlines()

    # The same by hand: the probabilities in every order, [order, picture, class].
    orders = [Order(range(4)).shuffled(seeded(3, "arbitrary", draw)) for draw in range(6)]
    images = [pictures[prediction.path] for prediction in predictions]
    in_each_order = torch.stack([probabilities(model, images, order) for order in orders])
    mean = in_each_order.mean(dim=0)
    likeliest = in_each_order.argmax(dim=-1)
    # The mutual information: the entropy of the mean less the mean of the entropies.
    entropy_of_mean = torch.special.entr(mean).sum(dim=-1)
    entropies = torch.special.entr(in_each_order).sum(dim=-1)
    disagreements = entropy_of_mean - entropies.mean(dim=0)

    votes = []
    for index, prediction in enumerate(predictions):
        assert prediction.disagreement == pytest.approx(disagreements[index].item(), abs=1e-4)
        assert lines[index].endswith(f"; disagreement {prediction.disagreement:.3f}")
        for likely in prediction.classes:
            label = CLASSES.index(likely.name)
            first = int((likeliest[:, index] == label).sum())
            votes.append(first)
            assert close(likely.probability, mean[index, label].item())
            assert close(likely.first, first / 6)
            assert (f"{likely.name} (first in {first} of 6 orders)" in lines[index]) == (first > 0)
    assert sum(votes) == 6 * len(pictures)
    assert set(votes) - {0, 6}  # in some pictures the orders disagree


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
    cut = whole.with_name("broken.png")
    cut.write_bytes(whole.read_bytes()[:200])
    text = whole.with_name("no_image.jpg")
    text.write_text("no image")

    predictions = predict_command(["best.ckpt", "pictures", "--output", "p.json"])
    assert [prediction.path for prediction in predictions] == sorted(pictures)
    said = capsys.readouterr().err
    assert f"{cut} can't be read as an image (" in said
    assert f"{text} can't be read as an image (" in said
    unreadable = json.loads(Path("p.json").read_text())["unreadable"]
    assert [entry["picture"] for entry in unreadable] == [str(cut), str(text)]

    line = fails(capsys, predict_command, "best.ckpt", str(cut), str(text))
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
    coloured = SMALL | {"in_chans": 3}
    model = ["--model.name=vit_tiny_patch16_224"]
    model += [f"--model.timm_args.{name}={value}" for name, value in coloured.items()]
    data = ["--data=ImageFolders", f"--data.root={root}", "--data.workers=0", "--data.batch_size=4"]
    trainer = ["--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
    train_command([*model, *data, *trainer, *QUIET])
    said = " ".join(capsys.readouterr().err.split())
    assert "fish: 2 classes; 9 training, 1 validation, 10 test images; the validation images are held out" in said
    assert said.index("fish: 2 classes") < said.index("cost: ")

    checkpoint = "runs/version_0/checkpoints/last.ckpt"
    loaded = layershuffle.load(checkpoint)
    assert loaded.classes == ["n01440764", "n01443537"]
    results = evaluate_command([checkpoint, "--protocols=sequential", "--data.workers=0"])
    assert results.measure(ByClassCounts).class_names(results) == loaded.classes

    # Matplotlib would read the one as a formula, and has no glyphs for the other.
    results.data.classes[:] = [r"$\frac$", "日本"]
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        set_up_logging()
        rendered(results.measure(ByClassCounts).figure(results), "png")
    assert not warned

    export(loaded, Path("exported"))
    exported = layershuffle.load("exported")
    assert exported.classes == loaded.classes
    picture = Image.open(root / "val/n01440764/RGB.JPEG")
    assert exported.predict([picture]) == loaded.predict([picture])


def test_timms_models_know_the_classes_of_imagenet(monkeypatch):
    make = named.create_model
    # Without its pretrained weights, which would be downloaded.
    monkeypatch.setattr(named, "create_model", lambda name, classes, pretrained: make(name, classes))
    loaded = layershuffle.load("vit_tiny_patch16_224")
    assert len(loaded.classes) == 1000
    assert loaded.classes[0] == "tench, Tinca tinca"
    assert loaded.classes[999] == "toilet tissue, toilet paper, bathroom tissue"


def test_files_are_written_before_lines_that_nobody_may_read(checkpoint, pictures, monkeypatch, capsys):
    class ClosedPipe(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    checkpoint()
    monkeypatch.setattr("sys.stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        predict_command(["best.ckpt", "pictures", "--output", "found.csv"])
    # A header, and all five classes of each picture.
    assert len(Path("found.csv").read_text().splitlines()) == 1 + 5 * len(pictures)
    # On a busy machine, lines of progress stand before it.
    assert capsys.readouterr().err.endswith("predictions: found.csv\n")


def test_what_can_not_be_written_is_printed(checkpoint, pictures, monkeypatch, capsys):
    checkpoint()
    Path("file").touch()
    assert "file" in fails(capsys, predict_command, "best.ckpt", "pictures", "--output=file/found.csv")

    def write_to_full_disk(path, content):
        raise UserError(f"{path} could not be written: No space left on device")

    monkeypatch.setattr("layershuffle.commands.predict.write_whole", write_to_full_disk)
    with pytest.raises(UserError, match="No space left"):
        predict_command(["best.ckpt", "pictures", "--output", "found.csv"])
    assert len(capsys.readouterr().out.splitlines()) == len(pictures)


def test_names_that_spreadsheets_or_utf_8_do_not_take():
    # A spreadsheet would take the class for a formula. The file's name has a byte that isn't UTF-8.
    classes = (LikelyClass("=1+1", 0.9991, 1.0), LikelyClass("b", 0.0004, 0.0), LikelyClass("c", 0.0, 0.0))
    prediction = Prediction("caf\udce9.png", classes)
    predictions = Predictions(ModelInfo(name="best", config={}), [], [prediction], [])
    header, first, *_ = csv.reader(io.StringIO(as_csv(predictions)))
    assert header[-2:] == ["share_of_orders", "disagreement"]
    assert first == ["caf\\udce9.png", "1", "'=1+1", "0.9991", "1.0", "0.0"]
    assert str(predictions).endswith(": 99.9% =1+1; <0.1% b; 0.0% c")
