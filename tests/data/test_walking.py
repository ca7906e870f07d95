"""Which pictures are found below folders with links, pipes and the like."""

import os

import numpy as np
import pytest
from PIL import Image

from layershuffle.api.pack import pack
from layershuffle.data import ImageFolders
from layershuffle.data.decoding import why_left_out
from layershuffle.data.picture_files import find_pictures
from layershuffle.errors import UserError

rng = np.random.default_rng(0)


def picture(path):
    """Save a picture of random pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Ten pictures: of each of two classes three for training and two for testing."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                picture(tmp_path / "pets" / split / name / f"{index}.png")
    return tmp_path / "pets"


def samples(root):
    """Path and label of each image of each split, and the reasons for which others are left out, by path."""
    data = ImageFolders(str(root), image_size=8, workers=0)
    data.setup()
    read = {}
    for split in ("train", "val"):
        found = data.read(split).images.samples
        read[split] = [(os.path.relpath(path, root / split), label) for path, label in found]
    reasons = {}
    for files in data.left_out.values():
        for path, reason in files:
            reasons[os.path.relpath(path, root)] = reason
    return read, reasons


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("train/cat/circle", "."),
        ("train/cat/up", ".."),
        ("train/cat/root", "../.."),
        ("train/cat/dogs", "../dog"),
        ("train/dog/tested", "../../val/dog"),
        ("train/cat/a_dog.png", "../dog/1.png"),
        ("train/cat/tested.png", "../../val/cat/1.png"),
        ("val/dog/trained.png", "../../train/dog/0.png"),
        ("val/cat/again.png", "0.png"),
    ],
)
def test_a_link_brings_no_image_twice_and_none_of_another_class_or_split(root, link, target):
    expected, nothing = samples(root)
    assert not nothing
    (root / link).symlink_to(target)
    read, reasons = samples(root)
    assert read == expected
    assert list(reasons) == [link]


def test_links_in_a_circle_are_followed_once(root):
    expected, _ = samples(root)
    (root / "train/cat/there").symlink_to("../dog/back", target_is_directory=True)
    (root / "train/dog/back").symlink_to("../cat/there", target_is_directory=True)
    (root / "train/dog/up").symlink_to("..")
    (root / "val/dog/up").symlink_to("../..")
    read, reasons = samples(root)
    assert read == expected
    assert {"train/dog/up", "val/dog/up"} <= reasons.keys()


def test_links_to_files_and_folders_elsewhere_work(root, tmp_path):
    picture(tmp_path / "more/nested/0.png")
    picture(tmp_path / "one.png")
    (root / "train/cat/linked").symlink_to(tmp_path / "more")
    (root / "train/cat/linked_again").symlink_to(tmp_path / "more")
    (root / "train/cat/one.png").symlink_to(tmp_path / "one.png")
    (root / "train/cat/one_again.png").symlink_to(tmp_path / "one.png")
    (root / "train/cat/nested.png").symlink_to(tmp_path / "more/nested/0.png")
    read, reasons = samples(root)
    cats = [path for path, label in read["train"] if label == 0]
    assert cats == ["cat/0.png", "cat/1.png", "cat/2.png", "cat/one.png", "cat/linked/nested/0.png"]
    assert reasons.keys() == {f"train/cat/{name}" for name in ("linked_again", "one_again.png", "nested.png")}


def test_an_image_of_two_classes_counts_for_the_first(root, tmp_path):
    picture(tmp_path / "one.png")
    for name in ("cat", "dog"):
        (root / f"train/{name}/one.png").symlink_to(tmp_path / "one.png")
    read, reasons = samples(root)
    assert [label for path, label in read["train"] if path.endswith("one.png")] == [0]
    assert reasons.keys() == {"train/dog/one.png"}


def test_an_image_that_is_linked_into_two_splits_is_named(root, tmp_path, caplog):
    picture(tmp_path / "one.png")
    for split in ("train", "val"):
        (root / f"{split}/cat/one.png").symlink_to(tmp_path / "one.png")
    samples(root)
    (warning,) = [message for message in caplog.messages if "link to" in message]
    assert f"{root}/train" in warning
    assert f"{root}/val" in warning
    assert "one.png" in warning


@pytest.mark.parametrize(("link", "target"), [("train/dog", "cat"), ("val/dog", "../train/cat"), ("val", "train")])
def test_classes_that_are_one_folder_are_refused(root, link, target):
    (root / link).rename(root / "moved")
    (root / link).symlink_to(target)
    with pytest.raises(UserError, match="one folder"):
        samples(root)


def test_a_class_folder_within_another_is_not_read_twice(root):
    picture(root / "train/cat/kitten/0.png")
    for split in ("train", "val"):
        picture(root / split / "aged" / "0.png")
    (root / "train/aged/0.png").unlink()
    (root / "train/aged").rmdir()
    (root / "train/aged").symlink_to("cat/kitten")
    read, reasons = samples(root)
    of_aged = [path for path, label in read["train"] if label == 0]
    of_cat = [path for path, label in read["train"] if label == 1]
    assert of_aged == ["aged/0.png"]
    assert of_cat == ["cat/0.png", "cat/1.png", "cat/2.png"]
    assert reasons.keys() == {"train/cat/kitten"}


def special(path):
    """Make a pipe in a folder, a link to a device that never ends, and links that lead nowhere."""
    os.mkfifo(path / "pipe.png")
    (path / "zeros.png").symlink_to("/dev/zero")
    (path / "itself").symlink_to("itself")
    (path / "nothing.txt").symlink_to("nowhere")


def test_only_regular_files_are_read(root, tmp_path):
    expected, _ = samples(root)
    special(root / "train/cat")
    special(root / "train")
    read, reasons = samples(root)
    assert read == expected
    assert reasons.keys() == {f"train/cat/{name}" for name in ("pipe.png", "zeros.png", "itself", "nothing.txt")}
    assert reasons["train/cat/pipe.png"] == "no regular file"
    assert reasons["train/cat/zeros.png"] == "no regular file"
    packed = pack(root, tmp_path / "packed", size=8, workers=0)
    assert packed.images == {"train": 6, "val": 4}


def test_a_picture_that_a_link_misses_is_broken_and_not_left_out(root):
    (root / "val/cat/0.png").unlink()
    (root / "val/cat/0.png").symlink_to("nowhere.png")
    data = ImageFolders(str(root), image_size=8, workers=0)
    data.setup()
    with pytest.raises(UserError, match=r"val/cat/0\.png.*--data.unreadable"):
        list(data.test_dataloader())


def test_predicted_pictures_are_found_once(root, tmp_path, caplog):
    caplog.set_level("INFO")
    special(root)
    (root / "train/cat/there").symlink_to("../dog", target_is_directory=True)
    (root / "train/dog/back").symlink_to("../cat", target_is_directory=True)
    picture(tmp_path / "elsewhere/0.png")
    (root / "elsewhere").symlink_to(tmp_path / "elsewhere")
    found = find_pictures([root])
    # The ten of the classes, and the one elsewhere.
    assert len(found) == 11
    assert len({os.path.realpath(path) for path in found}) == 11
    assert found == sorted(found, key=os.path.split)
    logged = "\n".join(caplog.messages)
    for name in ("train/cat/there", "train/dog/back", "pipe.png", "zeros.png", "itself", "nothing.txt"):
        assert f"  {root}/{name}: " in logged


def test_links_to_folders_that_hold_the_pictures_are_left_out(root, caplog):
    """A link to / would bring every picture of the machine."""
    caplog.set_level("INFO")
    cats = root / "train/cat"
    expected = find_pictures([cats])
    (cats / "all").symlink_to("/")
    (cats / "up").symlink_to("../..")
    (cats / "parent").symlink_to("..")
    assert find_pictures([cats]) == expected
    assert caplog.text.count(": leads to a folder that holds it") == 3


def test_files_without_any_bytes_are_not_opened_to_see_what_they_are(root, monkeypatch):
    """Those of /proc seem to be so, and some of them have no end."""
    (root / "train/cat/kmsg").symlink_to("/proc/self/status")
    expected = find_pictures([root / "val"])
    monkeypatch.setattr("layershuffle.data.decoding.open_file", pytest.fail)
    assert why_left_out(str(root / "train/cat/kmsg"), str(root)) == "empty"
    assert find_pictures([root / "val"]) == expected


def test_hidden_folders_hide_nothing_that_links_show(tmp_path):
    picture(tmp_path / "pictures/.store/0.png")
    (tmp_path / "pictures/shown.png").symlink_to(".store/0.png")
    (tmp_path / "pictures/folder").symlink_to(".store")
    assert len(find_pictures([tmp_path / "pictures"])) == 1


@pytest.mark.parametrize("name", ["pipe.png", "zeros.png"])
def test_a_pipe_or_a_device_is_refused_where_a_user_names_it(tmp_path, name):
    special(tmp_path)
    with pytest.raises(UserError, match=name):
        find_pictures([tmp_path / name])
