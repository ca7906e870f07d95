"""Sets of Hugging Face's ``datasets`` in a folder."""

import io
import json
import logging
import os
import socket
import sys

import datasets
import numpy as np
import pytest
import torch
from helpers import batches, fails
from PIL import ExifTags, Image
from pyarrow.parquet import write_table

import layershuffle
from layershuffle.commands.pack import pack_command
from layershuffle.commands.show_data import show_data_command
from layershuffle.commands.train import train_command
from layershuffle.data import DataConfig, HuggingFaceImages, ImageFolders, PackedFolders, from_config
from layershuffle.data.sets import images_by_class, labels_of
from layershuffle.errors import UserError

NAMES = ["cat", "dog", "eel"]
FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES), "source": datasets.Value("string")}
)
COUNTS = {"train": 12, "validation": 6, "test": 3}
rng = np.random.default_rng(0)
datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any connection but those of processes is an error, and so is any question for an address."""
    connect = socket.socket.connect

    def refuse(*_):
        raise AssertionError("the network was used")

    def only_local(self, address):
        if self.family != socket.AF_UNIX:
            refuse()
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_local)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def encoded(image, form="PNG", **options):
    """An image in the column of a set, as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def split(count, first=0):
    """Images of which each has a grey level of its own, ten times its number; their classes take turns."""
    images = []
    for number in range(first, first + count):
        grey = 10 * number
        images.append(encoded(Image.new("RGB", (8, 8), (grey, grey, grey))))
    columns = {
        "image": images,
        "label": [row % 3 for row in range(count)],
        "source": [f"photographer {row}" for row in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=FEATURES)


@pytest.fixture
def saved():
    """A set with three splits, which tests save in a folder."""
    return datasets.DatasetDict({name: split(count) for name, count in COUNTS.items()})


def set_up(root, stage=None, **arguments):
    """The data module of a folder, set up. The images have 8 pixels."""
    arguments.setdefault("workers", 0)
    data = HuggingFaceImages(str(root), image_size=8, **arguments)
    data.setup(stage)
    return data


def save_parquet(saved, folder, name):
    """Save each split as a Parquet file whose name has that of the split. Returns the folder."""
    for split_name, rows in saved.items():
        path = folder / name.format(split_name)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(str(path))
    return folder


def check_equal(loader, other_loader):
    """Two loaders give the same images and labels."""
    images, labels = batches(loader)
    other_images, other_labels = batches(other_loader)
    assert torch.equal(images, other_images)
    assert torch.equal(labels, other_labels)


def unfolded(text):
    """A text whose lines are one."""
    return " ".join(text.split())


def test_what_save_to_disk_writes(tmp_path, saved):
    saved.save_to_disk(str(tmp_path / "pets"))
    data = set_up(tmp_path / "pets")
    assert data.label == "pets"
    assert data.class_names == NAMES
    assert data.num_classes == 3

    # Images come in the sequence of their classes.
    images, labels = batches(data.loader("train"))
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images[:, 0, 0, 0].tolist() == [0, 30, 60, 90, 10, 40, 70, 100, 20, 50, 80, 110]

    # Its own validation images select the checkpoint.
    assert {name: len(images) for name, images in data.sets.items()} == {"train": 12, "val": 6, "test": 3}
    assert data.deciding_arguments("val") == data.test_arguments()
    described = unfolded(data.describe())
    assert "train for training, test for testing, validation for validation" in described


@pytest.mark.parametrize("name", ["{}-00000-of-00001.parquet", "data/{}.parquet", "{}/0000.parquet"])
def test_parquet_files(tmp_path, saved, name):
    save_parquet(saved, tmp_path / "pets", name)
    data = set_up(tmp_path / "pets", "test")
    _, labels = batches(data.test_dataloader())
    assert labels.tolist() == [0, 1, 2]
    assert data.class_names == NAMES


def test_several_parquet_files_of_a_split(tmp_path, saved):
    save_parquet(saved, tmp_path, "{}-00000-of-00002-1a2b.parquet")
    split(3, first=12).to_parquet(str(tmp_path / "train-00001-of-00002-3c4d.parquet"))
    assert len(set_up(tmp_path).sets["train"]) == 15


def test_a_set_without_splits_needs_a_fraction(tmp_path, saved):
    saved["train"].save_to_disk(str(tmp_path / "pets"))
    with pytest.raises(UserError, match=r"--data\.test_fraction 0\.2"):
        set_up(tmp_path / "pets")

    # A quarter of the four images of each class.
    data = set_up(tmp_path / "pets", test_fraction=0.25, val_fraction=0.2)
    assert images_by_class(data.sets["test"], 3).tolist() == [1, 1, 1]
    assert sum(len(images) for images in data.sets.values()) == 12

    # What a checkpoint records gives the same test images.
    again = from_config(DataConfig.from_dict(data.config().to_dict()))
    again.setup("test")
    check_equal(data.test_dataloader(), again.test_dataloader())

    # Each split that was saved by itself, side by side, is a set too.
    for name in ("train", "test"):
        saved[name].save_to_disk(str(tmp_path / "parts" / name))
    assert len(set_up(tmp_path / "parts").sets["test"]) == 3
    with pytest.raises(UserError, match="leave test_fraction out"):
        set_up(tmp_path / "parts", test_fraction=0.2)


def test_splits_and_columns_of_other_names(tmp_path, saved):
    # A second column of images and one of labels, so that it must be said which of two are meant.
    features = datasets.Features(
        {**FEATURES, "picture": datasets.Image(), "coarse": datasets.ClassLabel(num_classes=2)}
    )
    splits = {}
    for name, rows in (("left", saved["train"]), ("right", saved["test"])):
        coarse = [row % 2 for row in range(len(rows))]
        columns = {**rows[:], "picture": rows["image"][:], "coarse": coarse}
        splits[name] = datasets.Dataset.from_dict(columns, features=features)
    root = tmp_path / "pets"
    datasets.DatasetDict(splits).save_to_disk(str(root))

    with pytest.raises(UserError, match=r"splits left, right: .*--data\.train_split"):
        set_up(root)
    with pytest.raises(UserError, match="no split middle, but left, right"):
        set_up(root, train_split="middle")

    named = {"train_split": "left", "test_split": "right"}
    with pytest.raises(UserError, match=r"type ClassLabel, label, coarse: .*--data\.label_column"):
        set_up(root, image_column="picture", **named)
    with pytest.raises(UserError, match=r"type Image, image, picture: .*--data\.image_column"):
        set_up(root, label_column="coarse", **named)

    data = set_up(root, image_column="picture", label_column="coarse", **named)
    # Of the test images 0 to 2, in the sequence of their classes.
    assert labels_of(data.sets["test"]).tolist() == [0, 0, 1]
    assert data.class_names == ["0", "1"]
    with pytest.raises(UserError, match=r"no column photo, but image, .*coarse"):
        set_up(root, image_column="photo", label_column="coarse", **named)

    # Texts are labels too, and pictures no labels.
    data = set_up(root, image_column="image", label_column="source", **named)
    assert "photographer 0" in data.class_names
    with pytest.raises(UserError, match="needs one label"):
        set_up(root, image_column="image", label_column="picture", **named)
    with pytest.raises(UserError, match="column label of .* holds no images"):
        set_up(root, image_column="label", label_column="coarse", **named)


def test_two_splits_for_one_use(tmp_path, saved):
    saved["val"] = saved["test"]
    saved.save_to_disk(str(tmp_path))
    with pytest.raises(UserError, match=r"validation and val: .*--data\.val_split"):
        set_up(tmp_path)
    assert len(set_up(tmp_path, val_split="val").sets["val"]) == 3


def test_unknown_labels(tmp_path, saved):
    """The labels of ImageNet's test images are not public: on the hub they are -1."""
    saved["test"] = saved["test"].map(lambda row: {"label": -1})
    saved.save_to_disk(str(tmp_path / "pets"))
    # The split "validation" is for testing then, and a quarter of the training images is held out.
    data = set_up(tmp_path / "pets", val_fraction=0.25)
    assert {name: len(images) for name, images in data.sets.items()} == {"train": 9, "val": 3, "test": 6}
    assert "test is not used, as it has no labels" in unfolded(data.describe())

    def without_dogs(row):
        if row["label"] == NAMES.index("dog"):
            return {"label": -1}
        return {"label": row["label"]}

    saved["train"] = saved["train"].map(without_dogs)
    saved.save_to_disk(str(tmp_path / "some"))
    with pytest.raises(UserError, match="train, row 1: it has no label"):
        set_up(tmp_path / "some")


def test_images_are_decoded_as_those_of_class_folders(tmp_path):
    """EXIF rotation, palettes, transparency, CMYK and 16 bits."""
    pixels = Image.fromarray(rng.integers(0, 256, (24, 30, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    deep = Image.fromarray(rng.integers(0, 65536, (24, 30)).astype(np.uint16))
    transparent = Image.fromarray(rng.integers(0, 256, (24, 30, 4), dtype=np.uint8))
    images = [
        encoded(pixels, "JPEG", exif=exif),
        encoded(pixels.convert("P")),
        encoded(pixels.convert("CMYK"), "JPEG"),
        encoded(transparent),
        encoded(deep),
        encoded(pixels.convert("L"), "WEBP", lossless=True),
    ]
    # The same images for training and for testing, in class folders and in a set.
    for split_name in ("train", "test"):
        for index, image in enumerate(images):
            folder = tmp_path / "folders" / split_name / NAMES[index % 3]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.png").write_bytes(image["bytes"])
    columns = {"image": images, "label": [index % 3 for index in range(6)], "source": [""] * 6}
    rows = datasets.Dataset.from_dict(columns, features=FEATURES)
    datasets.DatasetDict(train=rows, test=rows).save_to_disk(str(tmp_path / "saved"))

    for channels in (1, 3, 4):
        of_folders = ImageFolders(str(tmp_path / "folders"), workers=0)
        of_set = HuggingFaceImages(str(tmp_path / "saved"), workers=0)
        for data in (of_folders, of_set):
            data.prepare_for(16, [0.5] * channels, [0.5] * channels)
            data.setup()
        for split_name in ("train", "test"):
            check_equal(of_folders.loader(split_name), of_set.loader(split_name))


def test_damaged_images_are_counted_and_named(tmp_path, saved, caplog):
    damaged = [{"bytes": b"no picture", "path": None}, None, {"bytes": None, "path": "http://example.org/cat.png"}]
    columns = {"image": damaged, "label": [0, 1, 2], "source": ["", "", ""]}
    undecoded = datasets.Features({**FEATURES, "image": datasets.Image(decode=False)})
    rows = datasets.Dataset.from_dict(columns, features=undecoded)
    del saved["test"]
    save_parquet(saved, tmp_path, "{}.parquet")
    # The library itself would look what the address leads to.
    write_table(rows.data.table, tmp_path / "test.parquet")

    with pytest.raises(UserError, match=r"row 0 can't be read as an image \(no image that Pillow can read\)"):
        batches(set_up(tmp_path, "test").test_dataloader())
    data = set_up(tmp_path, "test", unreadable=3)
    with caplog.at_level(logging.WARNING):
        _, labels = batches(data.test_dataloader())
    assert len(labels) == 0
    assert "row 1 can't be read as an image (the row has no image)" in caplog.text
    assert "row 2" in caplog.text


def test_images_that_are_files_beside_the_set(tmp_path):
    for row in range(3):
        Image.new("L", (8, 8), 10 * row).save(tmp_path / f"{row}.png")
    columns = {"image": ["0.png", "1.png", "2.png"], "label": ["cat", "dog", "eel"]}
    for split_name in ("train", "test"):
        datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / f"{split_name}.parquet"))
    data = set_up(tmp_path, image_column="image", label_column="label", val_fraction=0)
    images, _ = batches(data.test_dataloader())
    assert images[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert data.class_names == NAMES


def test_workers_read_the_same(tmp_path, saved):
    saved.save_to_disk(str(tmp_path))
    without_workers = set_up(tmp_path, "test", workers=0)
    with_workers = set_up(tmp_path, "test", workers=2)
    check_equal(without_workers.test_dataloader(), with_workers.test_dataloader())


def test_what_is_no_such_folder_is_one_line(tmp_path, saved, monkeypatch):
    with pytest.raises(UserError, match="no folder uoft-cs/cifar10, and nothing is fetched from the hub"):
        set_up("uoft-cs/cifar10")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="--data ImageFolders"):
        set_up(tmp_path / "empty")

    saved.save_to_disk(str(tmp_path / "pets"))
    arrow = tmp_path / "pets/test/data-00000-of-00001.arrow"
    content = arrow.read_bytes()
    for damage in (content[: len(content) // 2], b"", b"no arrow file"):
        arrow.write_bytes(damage)
        with pytest.raises(UserError, match=r"pets/test can't be read .*: save it again") as error:
            set_up(tmp_path / "pets")
        assert len(str(error.value).splitlines()) == 1
    for state in ("{", "{}", json.dumps({"_data_files": 3})):
        (tmp_path / "pets/train/state.json").write_text(state)
        with pytest.raises(UserError, match=r"pets/train can't be read"):
            set_up(tmp_path / "pets")

    # The beginning of a Parquet file, and no more.
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    save_parquet(saved, tmp_path / "other", "{}.parquet")
    with pytest.raises(UserError, match="can't be read"):
        set_up(tmp_path)


def test_the_package_may_be_missing(tmp_path, saved, monkeypatch):
    saved.save_to_disk(str(tmp_path))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'layershuffle\[huggingface\]'$"):
        set_up(tmp_path)


def test_packed_images_are_the_same_in_the_same_sequence(tmp_path, saved, capsys):
    # A class in the middle has no test image then.
    saved["test"] = saved["test"].select([0, 2])
    saved.save_to_disk(str(tmp_path / "pets"))
    arguments = [str(tmp_path / "pets"), str(tmp_path / "packed"), "--size", "8", "--workers", "0"]
    pack_command(arguments)
    packed = PackedFolders(str(tmp_path / "packed"), image_size=8, workers=0)
    packed.setup()
    data = set_up(tmp_path / "pets")
    assert packed.class_names == NAMES
    assert packed.label == "pets"
    for split_name in ("train", "val", "test"):
        check_equal(data.loader(split_name), packed.loader(split_name))

    # A finished folder is compared, also with data files that have changed.
    pack_command(arguments)
    assert "checked" in capsys.readouterr().out
    os.utime(tmp_path / "pets/train/data-00000-of-00001.arrow", ns=(1, 1))
    assert "is not what" in fails(capsys, pack_command, *arguments)

    # Whole pictures, of a set with columns that have to be named.
    with_two_labels = datasets.DatasetDict()
    for name, rows in saved.items():
        with_two_labels[name] = rows.add_column("other", rows["label"][:])
    with_two_labels = with_two_labels.cast_column("other", datasets.ClassLabel(num_classes=3))
    with_two_labels.save_to_disk(str(tmp_path / "more"))
    arguments = [str(tmp_path / "more"), str(tmp_path / "whole"), "--size", "8", "--workers", "0", "--whole", "true"]
    assert "--label_column" in fails(capsys, pack_command, *arguments)
    pack_command([*arguments, "--label_column", "other"])

    # By the Python API, with the splits for other uses.
    source = HuggingFaceImages(str(tmp_path / "pets"), test_split="validation", val_split="test")
    again = layershuffle.pack(source, tmp_path / "python", size=8, workers=0)
    assert again.images == {"train": 12, "val": 2, "test": 6}


@pytest.mark.heavy
def test_the_commands_take_it(tmp_path, saved, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved.save_to_disk("pets")
    data = ["--data", "HuggingFaceImages", "--data.root", "pets", "--data.workers", "0"]
    show_data_command(["mini_digits", *data, "--output", "data.png"])
    assert os.path.isfile("data.png")
    trainer = ["--trainer.max_epochs", "1", "--trainer.logger", "false", "--trainer.enable_progress_bar", "false"]
    train_command(["mini_digits", "layershuffle", "cpu", *data, *trainer])
    (checkpoint,) = tmp_path.glob("**/best.ckpt")
    # The checkpoint remembers its data.
    results = layershuffle.evaluate(str(checkpoint), protocols=["sequential", "arbitrary"], random_orders=2)
    assert results.data.data_class == "HuggingFaceImages"
    assert results.data.args["root"] == "pets"
    assert results.data.classes == NAMES
    assert results.data.images == 3
