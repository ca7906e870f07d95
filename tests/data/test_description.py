"""What is said of a data set when training begins."""

import torch
from torch.utils.data import Subset

from layershuffle.data import TensorImages
from layershuffle.data.description import MOST_CLASSES, describe


def images(*labels):
    """Tiny images with these labels."""
    return TensorImages(torch.zeros(len(labels), 1, 2, 2, dtype=torch.uint8), torch.tensor(labels))


def words(sets, num_classes=2, names=None, balanced=False):
    """What is said of the sets, in one line. As it is printed, no line has more than 80 characters."""
    text = describe("Letters", num_classes, names, sets, balanced)
    assert all(len(line) <= 80 for line in text.splitlines())
    return " ".join(text.split())


def test_the_images_of_each_split_and_class():
    sets = {"train": images(0, 0, 1), "val": images(1), "test": images(0, 1)}
    text = words(sets, names=["a", "b"])
    assert "2 classes; 3 training, 1 validation, 2 test images" in text
    assert "a: 2/0/1 b: 1/1/1" in text
    assert "equally often" not in text
    assert "equally often" in words(sets, balanced=True)


def test_each_class_stands_on_one_line_with_its_numbers():
    names = [str(digit) for digit in range(10)]
    # Each digit once, and half of them twice.
    split = images(*range(10), *range(5))
    sets = {"train": split, "val": split, "test": images(*range(10), *range(5))}
    lines = describe("Digits", 10, names, sets, False).splitlines()

    # The lines of classes are indented. A line has several classes, each followed by its numbers.
    cells = []
    for line in lines:
        if line.startswith("  "):
            cells_of_line = line.split()
            assert len(cells_of_line) % 2 == 0
            cells += cells_of_line
    assert [name.removesuffix(":") for name in cells[::2]] == names
    assert set(cells[1::2]) == {"2/2/2", "1/1/1"}


def test_paths_stay_whole():
    path = "some-where/" * 12 + "pictures"
    sets = {"train": images(0), "val": images(0), "test": images(0, 1)}
    assert path in describe(path, 2, None, sets, False)


def test_where_the_validation_images_come_from():
    whole = images(0, 1, 0)
    test = images(1, 0)
    assert "select the checkpoint" in words({"train": whole, "val": test, "test": test})
    held_out = {"train": Subset(whole, [0, 1]), "val": Subset(whole, [2]), "test": test}
    assert "held out from training" in words(held_out)


def test_many_classes_are_summed_up():
    classes = MOST_CLASSES + 1
    split = images(*range(classes), 0)
    text = words({"train": split, "val": split, "test": split}, num_classes=classes)
    assert "1 to 2 training" in text
    assert "1 has the fewest training images" in text


def test_labels_that_are_unknown_are_not_counted():
    unknown = Subset([(torch.zeros(1, 2, 2), 0)], [0])
    assert "of each class" not in words({"train": unknown, "val": unknown, "test": unknown})
