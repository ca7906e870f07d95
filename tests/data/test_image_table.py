"""Pictures that a CSV file lists."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import batches, fails
from PIL import Image

from layershuffle.commands.show_data import show_data_command
from layershuffle.data import DataConfig, ImageTable, from_config
from layershuffle.data.sets import images_by_class, labels_of, paths_of
from layershuffle.errors import UserError

LABELS = {"train": ["10", "9", "10", "2", "9", "2", "10", "2", "9", "10"], "test": ["2", "10", "9"]}
HEADER = ["path", "label", "split"]


def save_pictures(folder, count):
    """Pictures of which each has a grey level of its own."""
    (folder / "pictures").mkdir(parents=True)
    for index in range(count):
        pixels = np.full((8, 8, 3), 10 * index, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"pictures/{index}.png")


def write_table(folder, header, rows):
    """Write the file pets.csv, and return its path."""
    path = folder / "pets.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def rows(tmp_path):
    """The rows of ``LABELS``, whose pictures are there."""
    rows = []
    for split, labels in LABELS.items():
        for label in labels:
            rows.append([f"pictures/{len(rows)}.png", label, split])
    save_pictures(tmp_path, len(rows))
    return rows


def set_up(table, stage=None, **arguments):
    """The data module of a table, set up. The images have 8 pixels."""
    data = ImageTable(table, image_size=8, workers=0, **arguments)
    data.setup(stage)
    return data


def labels_of_test(data):
    """The labels of the test images, as its loader gives them."""
    _, labels = batches(data.test_dataloader())
    return labels


def test_each_picture_has_the_label_and_the_split_of_its_row(tmp_path, rows):
    table = write_table(tmp_path, HEADER, rows)
    data = set_up(table, val_fraction=0.3)
    # Numbers stand in their sequence, not in that of texts.
    assert data.class_names == ["2", "9", "10"]
    images, labels = batches(data.test_dataloader())
    assert images[:, 0, 0, 0].tolist() == [100, 110, 120]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 2, 1]
    sizes = {split: len(data.sets[split]) for split in ("train", "val", "test")}
    assert sizes == {"train": 7, "val": 3, "test": 3}
    # How many images of the class 2 there are for training, validation and testing.
    assert "2: 2/1/1" in data.describe()


def test_pictures_of_val_select_where_there_are_some_of_test(tmp_path, rows):
    rows[0] = ["pictures/0.png", "10", "val"]
    data = set_up(write_table(tmp_path, HEADER, rows))
    assert labels_of(data.sets["val"]).tolist() == [2]
    assert len(data.sets["train"]) == 9
    assert data.deciding_arguments("val") == data.test_arguments()

    # Without test images, those of val are the test images.
    rows = [[path, label, split] for path, label, split in rows if split != "test"]
    data = set_up(write_table(tmp_path, HEADER, rows), val_fraction=0.2)
    assert labels_of(data.sets["test"]).tolist() == [2]
    assert len(data.sets["val"]) == 2


def test_columns_can_have_other_names(tmp_path, rows):
    rows = [[path, 3, label, split] for path, label, split in rows]
    table = write_table(tmp_path, ["File name", "age", "breed", "part"], rows)
    # With tabs, and with the mark at the beginning that Excel writes.
    text = Path(table).read_text().replace(",", "\t")
    Path(table).write_text(text, encoding="utf-8-sig")
    data = set_up(
        table,
        "test",
        path_column="File name",
        label_column="breed",
        split_column="part",
        delimiter="\t",
    )
    assert labels_of(data.sets["test"]).tolist() == [0, 2, 1]


def test_a_part_can_be_held_out_for_testing(tmp_path, rows):
    table = write_table(tmp_path, ["path", "label"], [[path, label] for path, label, _ in rows])
    data = set_up(table, test_fraction=0.3, val_fraction=0.2)
    # Of the four, four and five images of a class, 1.2 and 1.5 would be held out.
    assert images_by_class(data.sets["test"], 3).tolist() == [1, 1, 2]
    assert sum(len(images) for images in data.sets.values()) == 13

    # What a checkpoint records gives the same test images.
    again = from_config(DataConfig.from_dict(data.config().to_dict()))
    again.setup("test")
    assert paths_of(again.sets["test"]) == paths_of(data.sets["test"])


def test_pictures_may_lie_anywhere(tmp_path, rows, monkeypatch):
    *others, last = rows
    path, label, split = last
    write_table(tmp_path, HEADER, [*others, [str(tmp_path / path), label, split]])
    monkeypatch.chdir(tmp_path)
    data = set_up("pets.csv", "test")
    assert len(labels_of_test(data)) == 3


@pytest.mark.parametrize(
    ("change", "row"),
    [
        (["pictures/0.png", "2", "train"], 7),  # the same picture as in row 2
        (["pictures/./0.png", "2", "train"], 7),
        (["pictures/missing.png", "2", "train"], 7),
        (["pictures", "2", "train"], 7),
        (["", "2", "train"], 7),
        (["pictures/5.png", " ", "train"], 7),
        (["pictures/5.png", "2", "valid"], 7),
        (["pictures/5.png", "2", ""], 7),
        (["pictures/5.png", "two", "test"], 7),  # no training picture has this label
        (["pictures/5.png", "2"], 7),
    ],
)
def test_a_fault_names_its_row(tmp_path, rows, change, row):
    rows[5] = change
    with pytest.raises(UserError, match=f"pets.csv, row {row}: "):
        set_up(write_table(tmp_path, HEADER, rows))


@pytest.mark.parametrize(
    ("content", "options", "told"),
    [
        (b"", {}, "--data.path_column"),
        (b"path;label;split\n", {}, "--data.delimiter"),
        (b"path,label,split\n", {}, "no rows"),
        (b"path,path,label\n", {}, "2 columns path"),
        (b"path,label\nA.png,\xff\n", {}, "UTF-8"),
        (b'path,label\n"A.png,cat\n', {}, "row 2"),
        (b"path,label\nA.png,cat\nB.png,dog\n", {}, "--data.test_fraction"),
        (b"path,label,split\nA.png,cat,train\nB.png,dog,train\n", {}, "needs train, and test or val"),
        (b"path,label,split\nA.png,cat,train\nB.png,dog,test\n", {"test_fraction": 0.5}, "leave test_fraction out"),
    ],
)
def test_a_table_that_lacks_something_is_one_line(tmp_path, content, options, told):
    (tmp_path / "pets.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        set_up(str(tmp_path / "pets.csv"), **options)
    assert told in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_one_class_is_not_enough(tmp_path, rows):
    table = write_table(tmp_path, HEADER, [[path, "cat", split] for path, _, split in rows])
    with pytest.raises(UserError, match="has 1 class:"):
        set_up(table)


def test_no_file_and_no_regular_file(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        set_up(str(tmp_path / "pets.csv"))
    with pytest.raises(UserError, match="no regular file"):
        set_up(str(tmp_path))
    with pytest.raises(UserError, match="no regular file"):
        set_up("/dev/zero")


def test_broken_pictures_are_counted_as_anywhere(tmp_path, rows, caplog):
    last_picture, _, _ = rows[-1]
    (tmp_path / last_picture).write_bytes(b"no picture")
    table = write_table(tmp_path, HEADER, rows)
    with pytest.raises(UserError, match=last_picture):
        labels_of_test(set_up(table, "test"))
    data = set_up(table, "test", unreadable=1)
    with caplog.at_level(logging.WARNING):
        assert labels_of_test(data).tolist() == [0, 2]


def test_the_command_shows_it_and_refuses_it_in_one_line(tmp_path, rows, capsys):
    arguments = ["mini_digits", "--data", "ImageTable", "--output", str(tmp_path / "data.png")]
    write_table(tmp_path, HEADER, rows)
    show_data_command([*arguments, "--data.table", str(tmp_path / "pets.csv")])
    assert (tmp_path / "data.png").is_file()
    assert "no.csv" in fails(capsys, show_data_command, *arguments, "--data.table", str(tmp_path / "no.csv"))


def test_several_labels_in_a_cell(tmp_path, rows):
    cells_of_train = ["cat;dog", "", "dog", "cat ; cat", "bird", "cat", "dog;bird", "", "cat", "dog"]
    cells_of_test = ["bird;cat", "", "dog"]
    cells = [*cells_of_train, *cells_of_test]
    rows = [[path, cell, split] for (path, _, split), cell in zip(rows, cells, strict=True)]
    data = set_up(write_table(tmp_path, HEADER, rows), label_separator=";", val_fraction=0.3)
    assert data.class_names == ["bird", "cat", "dog"]
    assert data.has_several_labels
    labels = labels_of_test(data)
    assert labels.dtype == torch.uint8
    assert labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]

    # A part of the rows of train is held out for validation.
    images_of_train = images_by_class(data.sets["train"], 3)
    images_of_val = images_by_class(data.sets["val"], 3)
    assert (images_of_train + images_of_val).tolist() == [2, 4, 4]

    # A model whose classes stand in another sequence.
    data.new_labels = [2, 0, 1]
    assert labels_of_test(data).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_a_column_for_each_class(tmp_path, rows):
    header = ["path", "split", "dog", "cat"]
    # Every second picture shows a dog, and every third a cat. Numbers can be written in either way.
    values = []
    for index, (path, _, split) in enumerate(rows):
        dog = "1" if index % 2 == 1 else "0"
        cat = "1.0" if index % 3 == 0 else "0.0"
        values.append([path, split, dog, cat])
    table = write_table(tmp_path, header, values)
    for columns in ("others", ["dog", "cat"]):
        data = set_up(table, "test", class_columns=columns)
        assert data.class_names == ["dog", "cat"]
        # Of the pictures 10 to 12.
        assert labels_of_test(data).tolist() == [[0, 0], [1, 0], [0, 1]]

    values[3] = ["pictures/3.png", "train", "-1", "1.0"]
    with pytest.raises(UserError, match="row 5: the column dog has '-1'"):
        set_up(write_table(tmp_path, header, values), class_columns="others")


def test_options_that_exclude_each_other(tmp_path):
    for options in (
        {"label_separator": ";", "class_columns": "others"},
        {"label_separator": " "},
        {"class_columns": []},
        {"delimiter": ""},
        {"test_fraction": 1.0},
    ):
        with pytest.raises(UserError):
            ImageTable("pets.csv", **options)


def test_options_that_need_one_label(tmp_path, rows):
    data = set_up(write_table(tmp_path, HEADER, rows), label_separator=";", balanced=True)
    with pytest.raises(UserError, match=r"data\.balanced needs images with one label"):
        data.train_dataloader()
