"""Pictures of every kind that users have, against what they show; what is found in folders of pictures."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import batches
from PIL import ExifTags, Image, ImageOps

from layershuffle.data import Digits, Glyphs, ImageFolders, PackedFolders, decoding, from_config
from layershuffle.data.decoding import as_rgb, open_image
from layershuffle.data.packing import Packing, pack
from layershuffle.data.sets import labels_of

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
"""The colours of a picture of 30 x 20 pixels."""


def saved(image, path, **options):
    """Save an image, and return the file as it is opened here."""
    image.save(path, **options)
    return open_image(path)


def over_white(colours, alpha):
    """The colours [height, width, channels] in front of white, which doesn't shine through where alpha is 255."""
    weight = alpha[..., None] / 255
    return colours * weight + 255 * (1 - weight)


def largest_difference(picture, expected):
    return np.abs(np.asarray(picture) - expected).max()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("extension", "options"), [("png", {}), ("webp", {"lossless": True}), ("tif", {})])
def test_pictures_are_turned_upright(tmp_path, orientation, extension, options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture = saved(Image.fromarray(RGB), tmp_path / f"turned.{extension}", exif=exif, **options)
    # The EXIF standard: which side of the scene row 0 and column 0 of the pixels show.
    upright = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB),
    }
    assert np.array_equal(picture, upright[orientation])
    # It is not turned again.
    assert np.array_equal(as_rgb(picture), upright[orientation])


def test_damaged_exif_data_says_nothing(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.fromarray(RGB).save(tmp_path / "damaged.png", exif=exif)

    def fail(image):
        raise KeyError("EXIF")

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert np.array_equal(open_image(tmp_path / "damaged.png"), RGB)


def test_white_shows_through_what_is_transparent(tmp_path):
    alpha = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    clear = Image.fromarray(np.dstack([RGB, alpha]))
    for extension in ("png", "tif"):
        picture = saved(clear, tmp_path / f"clear.{extension}")
        assert largest_difference(picture, over_white(RGB, alpha)) <= 1
    grey = Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.fromarray(alpha)])
    picture = saved(grey, tmp_path / "grey.png")
    assert largest_difference(picture, over_white(RGB[..., :1], alpha)) <= 1

    # A colour of the palette can stand for what is transparent.
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE)
    transparent = palette.getpixel((3, 4))
    is_hidden = np.asarray(palette) == transparent
    for extension in ("gif", "png"):
        picture = np.asarray(saved(palette, tmp_path / f"palette.{extension}", transparency=transparent))
        assert (picture[is_hidden] == 255).all()
        assert np.array_equal(picture[~is_hidden], np.asarray(palette.convert("RGB"))[~is_hidden])

    # So can an RGB colour, here that of a single pixel.
    transparent = tuple(RGB[3, 4].tolist())
    picture = np.asarray(saved(Image.fromarray(RGB), tmp_path / "colour.png", transparency=transparent))
    assert picture[3, 4].tolist() == [255, 255, 255]
    assert np.array_equal(picture[0], RGB[0])


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path, extension):
    grey = rng.integers(0, 65536, (20, 30), dtype=np.uint16)
    picture = saved(Image.fromarray(grey), tmp_path / f"deep.{extension}")
    # 65,535 is 257 times 255.
    scaled = np.round(grey / 257)
    assert np.array_equal(picture, np.dstack([scaled, scaled, scaled]))


def test_32_bit_grey_is_scaled(tmp_path):
    # Of floating-point numbers, 1 is white, and of whole numbers the largest that there is.
    fractions = rng.random((20, 30), dtype=np.float32)
    whole_numbers = rng.integers(0, 1 << 20, (20, 30)).astype(np.int32)
    for values, white in ((fractions, 1), (whole_numbers, whole_numbers.max())):
        picture = np.asarray(saved(Image.fromarray(values), tmp_path / "deep.tif"))
        assert largest_difference(picture[..., 0], values * (255 / white)) <= 0.51


def test_large_pictures_are_converted_in_strips_to_the_same_pixels(monkeypatch):
    alpha = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    whole_numbers = rng.integers(0, 1 << 20, (20, 30)).astype(np.int32)
    fractions = rng.random((20, 30), dtype=np.float32) * 3
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE)
    # Each colour is less transparent than the one before it.
    palette.info["transparency"] = bytes(range(256))
    images = [
        Image.fromarray(np.dstack([RGB, alpha])),
        Image.fromarray(whole_numbers),
        Image.fromarray(fractions),
        palette,
    ]
    converted_whole = [np.asarray(as_rgb(image)) for image in images]
    # Three rows of 30 pixels.
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 100)
    for image, expected in zip(images, converted_whole):
        assert np.array_equal(as_rgb(image), expected)


def test_opaque_pictures_are_what_pillow_makes_of_them(tmp_path):
    extensions = {
        "RGB": ("png", "bmp"),
        "L": ("png", "bmp"),
        "CMYK": ("jpg", "tif"),
        "P": ("png", "gif"),
        "1": ("png", "bmp"),
        "RGBA": ("png",),
    }
    for mode, extensions_of_mode in extensions.items():
        for extension in extensions_of_mode:
            path = tmp_path / f"{mode}.{extension}"
            picture = saved(Image.fromarray(RGB).convert(mode), path)
            assert picture.mode == "RGB"
            with Image.open(path) as image:
                assert np.array_equal(picture, image.convert("RGB")), path

    # Of a moving picture, that is its first frame.
    first = Image.new("RGB", (30, 20), "red")
    second = Image.new("RGB", (30, 20), "blue")
    for extension in ("gif", "webp", "tif", "png"):
        picture = saved(first, tmp_path / f"moving.{extension}", save_all=True, append_images=[second])
        red, _, blue = picture.getpixel((7, 9))
        assert red > 200
        assert blue < 50


def pictures(folder, count, extension="png"):
    """Save so many pictures of this format in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(RGB).save(folder / f"{number}.{extension}")


def own_folders(root, **splits):
    """Folders of the user's own, with two classes; ``splits`` are the numbers of pictures of each."""
    for split, (cats, dogs) in splits.items():
        pictures(root / split / "cat", cats)
        pictures(root / split / "dog", dogs)
    return root


def set_up(root, **arguments):
    """The data module of class folders, set up. The images have 16 pixels."""
    data = ImageFolders(str(root), image_size=16, workers=0, **arguments)
    data.setup()
    return data


def unfolded(text):
    """A text whose lines are one."""
    return " ".join(text.split())


def test_no_picture_vanishes(tmp_path):
    root = own_folders(tmp_path / "pets", train=(4, 6), test=(1, 2))
    for extension in ("gif", "avif", "webp", "jp2", "tiff", "ico"):
        pictures(root / "test/cat", 1, extension)
    Image.fromarray(RGB).save(root / "test/dog/without_extension", format="JPEG")
    pictures(root / "train/.ipynb_checkpoints", 1)
    pictures(root / "train/cat/.ipynb_checkpoints", 1)
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "test/cat/drawing.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0")

    data = set_up(root)
    assert data.class_names == ["cat", "dog"]
    assert labels_of(data.sets["test"]).bincount().tolist() == [7, 3]
    _, labels = batches(data.test_dataloader())
    assert len(labels) == 10

    described, left_out = data.describe().split("files left out: 3\n")
    described = unfolded(described)
    sizes = "9 training, 1 validation, 10 test images"
    assert described.startswith(f"pets: 2 classes; {sizes}; the validation images are held out from training")
    assert described.endswith(f"{root}/train for training, {root}/test for testing")

    # The seed decides of which class the held-out image is.
    cats, dogs = labels_of(data.sets["train"]).bincount(minlength=2).tolist()
    held_out_cats, held_out_dogs = labels_of(data.sets["val"]).bincount(minlength=2).tolist()
    assert cats + held_out_cats == 4
    assert dogs + held_out_dogs == 6
    of_each = f"cat: {cats}/{held_out_cats}/7 dog: {dogs}/{held_out_dogs}/3"
    assert f"images of each class (training/validation/test): {of_each} " in described

    assert set(left_out.splitlines()) == {
        f"  {root}/train/cat/.ipynb_checkpoints: hidden",
        f"  {root}/train/cat/notes.txt: no image that Pillow can read",
        f"  {root}/test/cat/drawing.eps: no image that Pillow can read",
    }


@pytest.mark.parametrize(
    ("splits", "arguments", "sizes", "sources"),
    [
        ({"val": (2, 2)}, {}, (18, 2, 4), {"training": "train", "testing": "val"}),
        ({"test": (2, 3)}, {}, (18, 2, 5), {"training": "train", "testing": "test"}),
        (
            {"val": (2, 2), "test": (2, 3)},
            {},
            (20, 4, 5),
            {"training": "train", "testing": "test", "validation": "val"},
        ),
        ({"test": (2, 3)}, {"val_fraction": 0.01}, (19, 1, 5), {"training": "train", "testing": "test"}),
        ({"val": (2, 2), "test": (2, 3)}, {"val_fraction": 0}, (20, 5, 5), {"training": "train", "testing": "test"}),
    ],
)
def test_the_test_images_of_own_folders_select_nothing(tmp_path, splits, arguments, sizes, sources):
    root = own_folders(tmp_path, train=(9, 11), **splits)
    packing = Packing(ImageFolders(str(root)), tmp_path / "packed", 16)
    (tmp_path / "packed").mkdir()
    list(pack(packing, 0))
    packed = PackedFolders(str(tmp_path / "packed"), image_size=16, workers=0, **arguments)
    packed.setup()
    tests_select = arguments == {"val_fraction": 0}
    for data in (set_up(root, **arguments), packed):
        assert tuple(len(data.sets[split]) for split in ("train", "val", "test")) == sizes
        assert data.sources == sources
        assert (data.sets["val"] is data.sets["test"]) == tests_select
        assert ("also select the checkpoint" in unfolded(data.describe())) == tests_select


def test_folders_that_are_not_used_are_named(tmp_path):
    root = own_folders(tmp_path, train=(4, 4), val=(1, 1))
    # Pictures without classes, as ImageNet's test images, whose classes are secret.
    pictures(root / "test", 3)
    data = set_up(root, val_fraction=0)
    assert len(data.sets["test"]) == 2
    assert unfolded(data.describe()).endswith(f"{root}/test is not used")


def test_classes_that_differ_are_named(tmp_path):
    root = own_folders(tmp_path, train=(4, 4), test=(1, 1))
    (root / "test/dog").rename(root / "test/dogs")
    with pytest.raises(ValueError, match="/test lacks dog and has dogs besides: its class folders must be those of"):
        set_up(root)


def test_sets_know_the_names_of_their_classes(tmp_path):
    glyphs = Glyphs(classes=7, images_per_class=1, test_images_per_class=1)
    assert [len(name) for name in glyphs.class_names] == [1] * 7
    data = Digits()
    data.setup()
    assert data.class_names == [str(digit) for digit in range(10)]
    train, val, test = (labels_of(data.sets[split]).bincount() for split in ("train", "val", "test"))
    assert int(train.sum() + val.sum() + test.sum()) == 1797
    assert f" 8: {train[8]}/{val[8]}/{test[8]}" in data.describe()

    # A checkpoint records the names besides.
    recorded = replace(data.config(), classes=data.class_names)
    assert from_config(recorded).config() == data.config()
