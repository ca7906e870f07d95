"""Images with other numbers of channels than colour and grey ones."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from layershuffle.api.predict import predict
from layershuffle.checkpoints.loaded_model import LoadedModel
from layershuffle.data import Digits, ImageData, ImageFolders, Preprocess, TensorImages
from layershuffle.data.augmentation import Augmentation, Augmented
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


def test_picture_files_are_refused_before_they_are_read(small, tmp_path):
    model = small(num_classes=2, in_chans=4)
    loaded = LoadedModel(model, ModelInfo(name="satellite", source="here", config=model.config))
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture)
    for classify in (loaded.predict, lambda pictures: predict(loaded, pictures, accelerator="cpu")):
        with pytest.raises(UserError, match="4 channels"):
            classify(picture)


@pytest.mark.parametrize("transform", [v2.RandomGrayscale(1.0), v2.ColorJitter(saturation=(0.1, 0.2))])
def test_transforms_of_colours_are_refused_for_six_channels(transform):
    images = Augmented(Satellite(workers=0).load(True), Augmentation(transforms=[transform]), 8, seed=0)
    with pytest.raises(UserError, match="6 channels"):
        images.__getitems__([(0, 0)])
    flipped = Augmented(Satellite(workers=0).load(True), Augmentation(flip=1.0), 8, seed=0)
    assert flipped.__getitems__([(0, 0)])[0].shape == (1, 6, 8, 8)


@pytest.mark.parametrize("stage", ["fit", "test"])
def test_images_of_other_channels_are_refused_before_the_first_batch(stage, tmp_path):
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(2):
                Image.new("RGBA", (8, 8)).save(tmp_path / split / name / f"{index}.png")
    for data in (ImageFolders(str(tmp_path)), Satellite(), Digits()):
        data.prepare_for(*papers_format((4, 8, 8), CFG))
        if isinstance(data, Digits):
            data.setup(stage)  # Grey images fit every model.
            continue
        with pytest.raises(UserError, match=r"[36] channels.*takes 4"):
            data.setup(stage)
