"""Images with other numbers of channels than colour and grey ones."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from layershuffle.api.pack import pack
from layershuffle.api.pictures import Pictures
from layershuffle.api.predict import predict
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data import Digits, ImageData, ImageFolders, PackedFolders, Preprocess, TensorImages
from layershuffle.data.augmentation import Augmentation, Augmented
from layershuffle.data.decoding import open_image, with_channels
from layershuffle.data.preprocessing import resize
from layershuffle.errors import UserError
from layershuffle.models.image_format import papers_format
from layershuffle.results import ModelInfo

CFG = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
"""What timm says of a model's images, which have three channels."""


@pytest.mark.parametrize(
    ("channels", "mean"),
    [(1, (0.2,)), (2, (0.1, 0.2)), (3, (0.1, 0.2, 0.3)), (4, (0.1, 0.2, 0.3, 0.1)), (6, (0.1, 0.2, 0.3) * 2)],
)
def test_each_channel_has_a_mean_and_a_deviation(channels, mean):
    image_format = papers_format((channels, 8, 8), CFG)
    assert image_format.mean == pytest.approx(mean)
    assert len(image_format.std) == channels
    images = torch.full((2, channels, 8, 8), 255, dtype=torch.uint8)
    pixels = Preprocess(*image_format)(images)
    expected = (1 - torch.tensor(image_format.mean)) / torch.tensor(image_format.std)
    torch.testing.assert_close(pixels[0, :, 0, 0], expected)


class Satellite(ImageData):
    """Eight images with six channels."""

    num_classes = 2

    def load(self, train):
        return TensorImages(torch.randint(256, (8, 6, 8, 8), dtype=torch.uint8), torch.arange(8) % 2)


def test_an_own_set_of_six_channels_feeds_a_model_of_six(small):
    data = Satellite(workers=0, batch_size=4)
    data.setup()
    model = small(num_classes=2, in_chans=6)
    preprocess = data.prepare_for(*model.image_format)
    images, _ = next(iter(data.test_dataloader()))
    assert model(preprocess(images)).logits.shape == (8, 2)
    with pytest.raises(UserError, match="3 channels.*takes 6"):
        preprocess(images[:, :3])


def loaded_model(small, channels):
    """A model of two classes for images with so many channels."""
    model = small(num_classes=2, in_chans=channels)
    return LoadedModel(model, ModelInfo(name="satellite", source="here", config=model.config))


def test_picture_files_are_refused_before_they_are_read(small, tmp_path):
    loaded = loaded_model(small, 6)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    with pytest.raises(UserError, match="6 channels"):
        loaded.predict(picture)
    with pytest.raises(UserError, match="6 channels"):
        predict(loaded, picture, accelerator="cpu")


def first_pixel(picture):
    """The channels of the first pixel."""
    return pil_to_tensor(picture)[:, 0, 0].tolist()


HALF_RED = (250, 0, 0, 128)
"""A colour that is half transparent."""
# On white, 250 * 128 / 255 + 127 = 252 and 127 are seen, whose grey is 0.299 * 252 + 0.701 * 127 = 164.
HALF_RED_IN_CHANNELS = {1: [164], 3: [252, 127, 127], 4: [250, 0, 0, 128]}
GREY_IN_CHANNELS = {1: [60], 3: [60, 60, 60], 4: [60, 60, 60, 255]}


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_have_the_channels_of_the_model(channels):
    cut_out = Image.new("RGBA", (4, 4), HALF_RED)
    assert first_pixel(with_channels(cut_out, channels)) == HALF_RED_IN_CHANNELS[channels]
    # A photograph is opaque, and its grey is the same everywhere.
    photograph = Image.new("RGB", (4, 4), (60, 60, 60))
    assert first_pixel(with_channels(photograph, channels)) == GREY_IN_CHANNELS[channels]


def test_transparent_palettes_and_deep_grey_have_a_fourth_channel(tmp_path):
    # All pixels have colour number 1 of the palette, which is the transparent one.
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert first_pixel(open_image(tmp_path / "palette.png", 4)) == [10, 20, 30, 0]

    white = Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16))
    assert first_pixel(with_channels(white, 4)) == [255, 255, 255, 255]


def test_colours_and_transparency_are_resized_each_for_itself():
    # Its left half is clear.
    image = Image.new("RGBA", (16, 16), (200, 100, 0, 255))
    image.paste((0, 0, 240, 0), (0, 0, 8, 16))
    resized = pil_to_tensor(resize(image, 4))
    for channel, band in enumerate(image.split()):
        (resized_band,) = pil_to_tensor(resize(band, 4))
        assert torch.equal(resized[channel], resized_band)
    # The colour of what is fully transparent stays.
    assert resized[:, 0, 0].tolist() == [0, 0, 240, 0]


@pytest.fixture
def cut_outs(tmp_path):
    """Folders of two classes with half transparent pictures of random colours."""
    rng = np.random.default_rng(0)
    root = tmp_path / "folders"
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(256, size=(12, 8, 4), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_folders_packs_and_predictions_give_the_same_pixels(cut_outs, tmp_path, small, channels):
    loaded = loaded_model(small, channels)
    pack(cut_outs, tmp_path / "packed", size=8, channels=channels, workers=0)

    def batch_of(data):
        """The test images, as the model takes them."""
        preprocess = data.prepare_for(*loaded.model.image_format)
        data.setup("test")
        images, _ = next(iter(data.test_dataloader()))
        assert images.shape == (4, channels, 8, 8)
        return preprocess(images)

    of_folders = batch_of(ImageFolders(str(cut_outs), workers=0))
    of_pack = batch_of(PackedFolders(str(tmp_path / "packed"), workers=0))
    assert torch.equal(of_pack, of_folders)

    # The first is what ``LoadedModel.predict`` makes of pictures, and the second is for folders of them.
    paths = sorted((cut_outs / "val").rglob("*.png"))
    opened = loaded.preprocess([open_image(path, channels) for path in paths])
    assert torch.equal(opened, of_folders)
    found = Pictures([str(path) for path in paths], loaded)
    assert torch.equal(torch.stack([pixels for _, pixels in found]), of_folders)
    assert len(predict(loaded, str(cut_outs / "val"), accelerator="cpu")) == 4


def test_augmented_cut_outs_keep_their_fourth_channel(cut_outs):
    data = ImageFolders(str(cut_outs), workers=0, val_fraction=0)
    data.prepare_for(*papers_format((4, 8, 8), CFG))
    data.setup()
    augmented = Augmented(data.sets["train"], Augmentation(scale=[1.0, 1.0], flip=0.0), 8, seed=0)
    images, _ = augmented.__getitems__([(0, 0), (0, 1)])
    assert images.shape == (2, 4, 8, 8)


def test_a_pack_of_other_channels_is_refused(cut_outs, tmp_path):
    pack(cut_outs, tmp_path / "packed", size=8, channels=4, workers=0)
    with pytest.raises(UserError, match="4 channels.*3 channels"):
        pack(cut_outs, tmp_path / "packed", size=8, workers=0)
    data = PackedFolders(str(tmp_path / "packed"))
    data.prepare_for(*papers_format((3, 8, 8), CFG))
    with pytest.raises(UserError, match=r"4 channels.*takes 3"):
        data.setup("test")
    with pytest.raises(UserError, match="not in 2"):
        pack(cut_outs, tmp_path / "two", channels=2)


@pytest.mark.parametrize("transform", [v2.RandomGrayscale(1.0), v2.ColorJitter(saturation=(0.1, 0.2))])
def test_transforms_of_colours_are_refused_for_six_channels(transform):
    satellite = Satellite(workers=0).load(True)
    transformed = Augmented(satellite, Augmentation(transforms=[transform]), 8, seed=0)
    with pytest.raises(UserError, match="6 channels"):
        transformed.__getitems__([(0, 0)])
    flipped = Augmented(satellite, Augmentation(flip=1.0), 8, seed=0)
    images, _ = flipped.__getitems__([(0, 0)])
    assert images.shape == (1, 6, 8, 8)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_images_of_other_channels_are_refused_before_the_first_batch(stage, cut_outs):
    of_five = papers_format((5, 8, 8), CFG)
    for data in (ImageFolders(str(cut_outs)), Satellite()):
        data.prepare_for(*of_five)
        with pytest.raises(UserError, match=r"[36] channels.*takes 5"):
            data.setup(stage)

    # Grey images fit every model.
    digits = Digits()
    digits.prepare_for(*of_five)
    digits.setup(stage)
