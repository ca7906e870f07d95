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
    model = small(num_classes=2, in_chans=channels)
    return LoadedModel(model, ModelInfo(name="satellite", source="here", config=model.config))


def test_picture_files_are_refused_before_they_are_read(small, tmp_path):
    loaded = loaded_model(small, 6)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    for classify in (loaded.predict, lambda pictures: predict(loaded, pictures, accelerator="cpu")):
        with pytest.raises(UserError, match="6 channels"):
            classify(picture)


HALF_RED = (250, 0, 0, 128)
"""A colour that is half transparent."""
EXPECTED = {1: (164,), 3: (252, 127, 127), 4: HALF_RED}
"""What it becomes: on white 250 * 128 / 255 + 127 = 252 and 127, whose grey is 0.299 * 252 + 0.701 * 127 = 164."""


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_have_the_channels_of_the_model(channels):
    cut_out = Image.new("RGBA", (4, 4), HALF_RED)
    picture = with_channels(cut_out, channels)
    assert pil_to_tensor(picture)[:, 0, 0].tolist() == list(EXPECTED[channels])
    # A photograph is opaque, and its grey is the same everywhere.
    opaque = pil_to_tensor(with_channels(Image.new("RGB", (4, 4), (60, 60, 60)), channels))
    assert opaque[:, 0, 0].tolist() == {1: [60], 3: [60] * 3, 4: [60] * 3 + [255]}[channels]


def test_transparent_palettes_and_deep_grey_have_a_fourth_channel(tmp_path):
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=1)
    assert pil_to_tensor(open_image(tmp_path / "palette.png", 4))[:, 0, 0].tolist() == [10, 20, 30, 0]
    deep = Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16))
    assert pil_to_tensor(with_channels(deep, 4))[:, 0, 0].tolist() == [255] * 4


def test_colours_and_transparency_are_resized_each_for_itself():
    left_clear = Image.new("RGBA", (16, 16), (200, 100, 0, 255))
    left_clear.paste((0, 0, 240, 0), (0, 0, 8, 16))
    resized = pil_to_tensor(resize(left_clear, 4))
    for channel, band in enumerate(left_clear.split()):
        assert torch.equal(resized[channel], pil_to_tensor(resize(band, 4))[0])
    # The colour of what is fully transparent stays.
    assert resized[:, 0, 0].tolist() == [0, 0, 240, 0]


@pytest.fixture
def cut_outs(tmp_path):
    """Folders of two classes with half transparent pictures of random colours."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "folders" / split / name).mkdir(parents=True)
            for index in range(2):
                pixels = rng.integers(256, size=(12, 8, 4), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "folders" / split / name / f"{index}.png")
    return tmp_path / "folders"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_folders_packs_and_predictions_give_the_same_pixels(cut_outs, tmp_path, small, channels):
    loaded = loaded_model(small, channels)
    pack(cut_outs, tmp_path / "packed", size=8, channels=channels, workers=0)
    batches = []
    for data in (ImageFolders(str(cut_outs), workers=0), PackedFolders(str(tmp_path / "packed"), workers=0)):
        preprocess = data.prepare_for(*loaded.model.image_format)
        data.setup("test")
        images, _ = next(iter(data.test_dataloader()))
        assert images.shape == (4, channels, 8, 8)
        batches.append(preprocess(images))
    paths = sorted((cut_outs / "val").rglob("*.png"))
    batches.append(loaded.preprocess([open_image(path, channels) for path in paths]))
    batches.append(torch.stack([pixels for _, pixels in Pictures(list(map(str, paths)), loaded)]))
    for batch in batches[1:]:
        assert torch.equal(batches[0], batch)
    assert len(predict(loaded, str(cut_outs / "val"), accelerator="cpu")) == 4


def test_augmented_cut_outs_keep_their_fourth_channel(cut_outs):
    data = ImageFolders(str(cut_outs), workers=0, val_fraction=0)
    data.prepare_for(*papers_format((4, 8, 8), CFG))
    data.setup()
    images = Augmented(data.sets["train"], Augmentation(scale=[1.0, 1.0], flip=0.0), 8, seed=0)
    assert images.__getitems__([(0, 0), (0, 1)])[0].shape == (2, 4, 8, 8)


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
    images = Augmented(Satellite(workers=0).load(True), Augmentation(transforms=[transform]), 8, seed=0)
    with pytest.raises(UserError, match="6 channels"):
        images.__getitems__([(0, 0)])
    flipped = Augmented(Satellite(workers=0).load(True), Augmentation(flip=1.0), 8, seed=0)
    assert flipped.__getitems__([(0, 0)])[0].shape == (1, 6, 8, 8)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_images_of_other_channels_are_refused_before_the_first_batch(stage, cut_outs):
    for data in (ImageFolders(str(cut_outs)), Satellite(), Digits()):
        data.prepare_for(*papers_format((5, 8, 8), CFG))
        if isinstance(data, Digits):
            data.setup(stage)  # Grey images fit every model.
            continue
        with pytest.raises(UserError, match=r"[36] channels.*takes 5"):
            data.setup(stage)
