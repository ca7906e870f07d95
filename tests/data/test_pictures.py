"""Pictures of every kind that users have, against what they show; what is found in folders of pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import batches
from PIL import Image, ImageOps

from layershuffle.data import Digits, Glyphs, ImageFolders, PackedFolders, decoding, from_config
from layershuffle.data.decoding import as_rgb, open_image
from layershuffle.data.packing import Packing, pack
from layershuffle.data.sets import labels_of

rng = np.random.default_rng(0)
RGB = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def saved(image, path, **options):
    image.save(path, **options)
    return open_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("extension", "options"), [("png", {}), ("webp", {"lossless": True}), ("tif", {})])
def test_pictures_are_turned_upright(tmp_path, orientation, extension, options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = saved(Image.fromarray(RGB), tmp_path / f"turned.{extension}", exif=exif, **options)
    # The EXIF standard: which side of the scene row 0 and column 0 of the pixels show.
    turned = {
        1: RGB, 2: RGB[:, ::-1], 3: RGB[::-1, ::-1], 4: RGB[::-1],
        5: RGB.transpose(1, 0, 2), 6: np.rot90(RGB, -1), 7: RGB[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(RGB),
    }[orientation]  # fmt: skip
    assert np.array_equal(found, turned)
    assert np.array_equal(as_rgb(found), turned)  # is not turned again


def test_damaged_exif_data_says_nothing(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "damaged.png", exif=exif)

    def fail(image):
        raise KeyError("EXIF")

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert np.array_equal(open_image(tmp_path / "damaged.png"), RGB)


def test_white_shows_through_what_is_transparent(tmp_path):
    alpha = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    clear = Image.fromarray(np.dstack([RGB, alpha]))
    weight = alpha[..., None] / 255
    expected = RGB * weight + 255 * (1 - weight)
    for extension in ("png", "tif"):
        assert np.abs(np.asarray(saved(clear, tmp_path / f"clear.{extension}")) - expected).max() <= 1
    grey = Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.fromarray(alpha)])
    found = np.asarray(saved(grey, tmp_path / "grey.png"))
    assert np.abs(found - (RGB[..., :1] * weight + 255 * (1 - weight))).max() <= 1
    # A colour of the palette, and one RGB colour, can stand for what is transparent.
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE)
    hidden = np.asarray(palette) == palette.getpixel((3, 4))
    for extension in ("gif", "png"):
        found = np.asarray(saved(palette, tmp_path / f"palette.{extension}", transparency=palette.getpixel((3, 4))))
        assert (found[hidden] == 255).all()
        assert np.array_equal(found[~hidden], np.asarray(palette.convert("RGB"))[~hidden])
    found = np.asarray(saved(Image.fromarray(RGB), tmp_path / "colour.png", transparency=tuple(RGB[3, 4].tolist())))
    assert found[3, 4].tolist() == [255, 255, 255]
    assert np.array_equal(found[0], RGB[0])


@pytest.mark.parametrize("extension", ["png", "tif", "pgm"])
def test_16_bit_grey_is_scaled(tmp_path, extension):
    grey = rng.integers(0, 65536, (20, 30), dtype=np.uint16)
    found = np.asarray(saved(Image.fromarray(grey), tmp_path / f"deep.{extension}"))
    assert np.array_equal(found, np.round(grey / 257)[..., None].repeat(3, axis=2))


def test_32_bit_grey_is_scaled(tmp_path):
    for raw, white in ((rng.random((20, 30), dtype=np.float32), 1), (rng.integers(0, 1 << 20, (20, 30)), None)):
        values = raw.astype(np.int32 if white is None else np.float32)
        found = np.asarray(saved(Image.fromarray(values), tmp_path / "deep.tif"))[..., 0]
        assert np.abs(found - values * (255 / (white or values.max()))).max() <= 0.51


def test_large_pictures_are_converted_in_strips_to_the_same_pixels(monkeypatch):
    alpha = rng.integers(0, 256, (20, 30), dtype=np.uint8)
    deep = rng.integers(0, 1 << 20, (20, 30))
    images = [
        Image.fromarray(np.dstack([RGB, alpha])),
        Image.fromarray(deep.astype(np.int32)),
        Image.fromarray(rng.random((20, 30), dtype=np.float32) * 3),
        Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE),
    ]
    images[-1].info["transparency"] = bytes(range(256))
    whole = [np.asarray(as_rgb(image)) for image in images]
    monkeypatch.setattr(decoding, "STRIP_PIXELS", 100)
    for image, expected in zip(images, whole):
        assert np.array_equal(as_rgb(image), expected)


def test_opaque_pictures_are_what_pillow_makes_of_them(tmp_path):
    picture = Image.fromarray(RGB)
    for mode in ("RGB", "L", "CMYK", "P", "1", "RGBA"):
        for extension in {"P": ("png", "gif"), "CMYK": ("jpg", "tif"), "RGBA": ("png",)}.get(mode, ("png", "bmp")):
            path = tmp_path / f"{mode}.{extension}"
            found = saved(picture.convert(mode), path)
            assert found.mode == "RGB"
            with Image.open(path) as image:
                assert np.array_equal(found, image.convert("RGB")), path
    red, blue = (Image.new("RGB", (30, 20), color) for color in ("red", "blue"))
    for extension in ("gif", "webp", "tif", "png"):
        found = saved(red, tmp_path / f"moving.{extension}", save_all=True, append_images=[blue])
        assert found.getpixel((7, 9))[0] > 200 > 50 > found.getpixel((7, 9))[2]


def pictures(folder, count, extension="png"):
    folder.mkdir(parents=True, exist_ok=True)
    for at in range(count):
        Image.fromarray(RGB).save(folder / f"{at}.{extension}")


def own_folders(root, **splits):
    """Folders of the user's own, with two classes; ``splits`` are the numbers of pictures of each."""
    for split, counts in splits.items():
        for name, count in zip(("cat", "dog"), counts):
            pictures(root / split / name, count)
    return root


def set_up(root, **arguments):
    data = ImageFolders(str(root), image_size=16, workers=0, **arguments)
    data.setup()
    return data


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
    assert len(batches(data.test_dataloader())[1]) == 10
    found, left_out = data.describe().split("files left out: 3\n")
    said = " ".join(found.split())  # the lines are wrapped
    sizes = "9 training, 1 validation, 10 test images"
    assert said.startswith(f"pets: 2 classes; {sizes}; the validation images are held out from training")
    kept, held = (labels_of(data.sets[split]).bincount(minlength=2).tolist() for split in ("train", "val"))
    assert [kept[0] + held[0], kept[1] + held[1]] == [4, 6]
    each = f"cat: {kept[0]}/{held[0]}/7 dog: {kept[1]}/{held[1]}/3"
    assert f"images of each class (training/validation/test): {each} " in said
    assert said.endswith(f"{root}/train for training, {root}/test for testing")
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
    for data in (set_up(root, **arguments), packed):
        assert tuple(len(data.sets[split]) for split in ("train", "val", "test")) == sizes
        assert data.sources == sources
        assert (data.sets["val"] is data.sets["test"]) == (arguments == {"val_fraction": 0})
        assert ("also select the checkpoint" in " ".join(data.describe().split())) == (data.val_fraction == 0)


def test_folders_that_are_not_used_are_named(tmp_path):
    root = own_folders(tmp_path, train=(4, 4), val=(1, 1))
    pictures(root / "test", 3)  # as ImageNet's test images, whose classes are secret
    data = set_up(root, val_fraction=0)
    assert len(data.sets["test"]) == 2
    assert " ".join(data.describe().split()).endswith(f"{root}/test is not used")


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
    counts = torch.stack([labels_of(data.sets[split]).bincount() for split in ("train", "val", "test")], dim=1)
    assert int(counts.sum()) == 1797
    assert f" 8: {'/'.join(map(str, counts[8].tolist()))}" in data.describe()
    assert from_config(replace(data.config(), classes=data.class_names)).config() == data.config()
