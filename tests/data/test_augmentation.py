"""What an image becomes depends on the seed, the epoch and the image, not on workers, processes or its batch."""

import math

import pytest
import torch
from helpers import batches, fake_imagenet
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.transforms import v2

from layershuffle.data import DecodedImages, Digits, Glyphs, ImageFolders, TensorImages, TorchvisionImages
from layershuffle.data.augmentation import Augmentation, Augmented
from layershuffle.errors import UserError

EVERYTHING = Augmentation(
    scale=(0.2, 1.0),
    flip=0.5,
    transforms=[v2.RandAugment(), v2.RandomErasing(p=0.5, value=127)],
    mixup=0.8,
    cutmix=1.0,
)


class Module:
    augmentation = EVERYTHING
    seed = 3


class Trainer:
    """As much of a trainer as a data module asks for."""

    lightning_module = Module
    training = False
    strategy = SingleDeviceStrategy("cpu")

    def __init__(self, world_size=1, global_rank=0):
        self.world_size = world_size
        self.global_rank = global_rank


def loader(data, epoch=0, **trainer):
    """The loader of a set's training images, for an epoch and a process of a trainer."""
    data.trainer = Trainer(**trainer)
    data.setup()
    train = data.train_dataloader()
    train.sampler.set_epoch(epoch)
    return train


def by_image(loader):
    """The bytes of every changed image, in any sequence."""
    images, _ = batches(loader)
    return sorted(image.numpy().tobytes() for image in images)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return str(fake_imagenet(tmp_path_factory.mktemp("folders")))


@pytest.mark.parametrize("kind", ["in memory", "folders"])
def test_workers_and_processes_see_the_same_pixels(folders, kind):
    def make(**options):
        if kind == "in memory":
            return Digits(train_images=64, val_fraction=0, batch_size=4, **options)
        return ImageFolders(folders, image_size=24, batch_size=1, val_fraction=0, **options)

    images, labels = batches(loader(make(workers=0)))
    images_by_workers, labels_by_workers = batches(loader(make(workers=2)))
    assert torch.equal(images, images_by_workers)
    assert torch.equal(labels, labels_by_workers)
    if kind == "in memory":
        images_on_device, _ = batches(loader(make(on_device=True)))
        assert torch.equal(images, images_on_device)

    of_one_process = by_image(loader(make(workers=0)))
    of_first = by_image(loader(make(workers=0), world_size=2, global_rank=0))
    of_second = by_image(loader(make(workers=0), world_size=2, global_rank=1))
    assert sorted(of_first + of_second) == of_one_process
    of_next_epoch = by_image(loader(make(workers=0), epoch=1))
    assert of_next_epoch != of_one_process


def test_images_of_a_batch_are_changed_each_in_its_own_way():
    # Eight times the same image, which has another value in each pixel, with eight labels.
    image = torch.arange(256).view(16, 16).to(torch.uint8)
    same = TensorImages(image.expand(8, 1, 16, 16), torch.arange(8))
    augmentation = Augmentation(padding=0.25)
    images = Augmented(same, augmentation, 16, seed=0)
    first_epoch = [(0, index) for index in range(8)]
    state_before = torch.get_rng_state()
    changed, labels = images.__getitems__(first_epoch)
    assert torch.equal(state_before, torch.get_rng_state())
    assert torch.equal(labels, torch.arange(8))
    assert len({image.numpy().tobytes() for image in changed}) > 4

    # The seed and the epoch change them too, the place in the batch doesn't.
    alone, _ = images[0, 5]
    assert torch.equal(alone, changed[5])
    second_epoch = [(1, index) for index in range(8)]
    changed_later, _ = images.__getitems__(second_epoch)
    assert not torch.equal(changed_later, changed)
    changed_otherwise, _ = Augmented(same, augmentation, 16, seed=1).__getitems__(first_epoch)
    assert not torch.equal(changed_otherwise, changed)

    # An image is the same one, whichever part of the set it is trained in. The second of this part is number 5.
    part = Augmented(Subset(Subset(same, [7, 5, 3]), [2, 1]), augmentation, 16, seed=0)
    in_part, _ = part[0, 1]
    assert torch.equal(in_part, changed[5])


def test_random_crops_see_all_of_a_decoded_image_and_evaluation_its_centre(folders):
    data = ImageFolders(folders, image_size=24, batch_size=1, val_fraction=0.2, workers=0)
    train = loader(data).dataset
    shapes = set()
    for index in train.indices:
        image, _ = train.dataset[index]
        shapes.add(image.shape)
    assert shapes == {(3, 40, 60), (3, 40, 61)}
    crops, _ = train.__getitems__([(0, 0), (0, 1)])
    assert crops.shape == (2, 3, 24, 24)

    centre_cropped = data.sets["train"].dataset
    expected = []
    for index in data.sets["val"].indices:
        image, _ = centre_cropped[index]
        expected.append(image)
    images, _ = batches(data.val_dataloader())
    assert torch.equal(images, torch.stack(expected))


def test_small_images_are_cropped_in_their_own_size_and_enlarged_on_the_device():
    tiny = TensorImages(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))
    for_a_larger_model, _ = Augmented(tiny, EVERYTHING, 224, seed=0)[0, 0]
    assert for_a_larger_model.shape == (3, 32, 32)
    for_a_smaller_model, _ = Augmented(tiny, EVERYTHING, 16, seed=0)[0, 0]
    assert for_a_smaller_model.shape == (3, 16, 16)


def test_mixed_labels_say_how_much_of_each_image_is_there():
    # Image number i is white in channel i and black in all others: a channel shows how much of its image is there.
    images = torch.eye(4).view(4, 4, 1, 1).expand(4, 4, 8, 8).contiguous()
    for augmentation in (Augmentation(mixup=0.8), Augmentation(cutmix=1.0), Augmentation(mixup=0.8, cutmix=1.0)):
        torch.manual_seed(0)
        mix = augmentation.of_batch(4)
        for _ in range(5):
            mixed, labels = mix(images, torch.arange(4))
            assert torch.allclose(mixed.mean(dim=(2, 3)), labels, atol=1e-6)
    assert Augmentation().of_batch(4) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)},
        {"scale": (1.0, 0.5)},
        {"padding": 1.0},
        {"flip": 1.5},
        {"mixup": -1.0},
        {"mixup": math.nan},
    ],
)
def test_wrong_augmentation_is_one_sentence(wrong):
    with pytest.raises(UserError):
        Augmentation(**wrong)


@pytest.mark.parametrize(
    ("augmentation", "mirrors"),
    [
        (Augmentation(), False),
        (Augmentation(flip=0.5), True),
        (Augmentation(transforms=[v2.RandomVerticalFlip(0.1)]), True),
        (Augmentation(transforms=[v2.RandomApply([v2.RandomHorizontalFlip()])]), True),
        (Augmentation(transforms=[v2.RandomHorizontalFlip(0.0), v2.RandomErasing()]), False),
    ],
)
def test_mirrored_digits_are_warned_of_once(augmentation, mirrors, caplog, monkeypatch):
    data = Digits(workers=0)
    data.setup()
    data.trainer = Trainer()
    monkeypatch.setattr(Module, "augmentation", augmentation)
    # The second time, there is no warning in any case.
    for _ in range(2):
        data.train_dataloader()
    warnings = [message for message in caplog.messages if "augmentation.flip" in message]
    assert len(warnings) == (1 if mirrors else 0)


def test_sets_whose_mirrored_images_are_others():
    assert Glyphs(classes=2).has_handed_classes
    assert TorchvisionImages("EMNIST", 10).has_handed_classes
    assert not TorchvisionImages("CIFAR10", 10).has_handed_classes
    assert not ImageFolders().has_handed_classes


def test_whole_pictures_of_a_batch_are_read_one_after_the_other(monkeypatch):
    """A batch of 12-megapixel photographs would take 4.6 GB in each process."""
    sequence = []

    class Photographs(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            sequence.append("read")
            return Image.new("RGB", (40, 30)), 0

    def change(image):
        sequence.append("change")
        return image[:, :8, :8]

    images = Augmented(DecodedImages(Photographs(), 8), Augmentation(scale=(0.5, 1.0)), 8, seed=0)
    monkeypatch.setattr(images, "transform", change)
    images.__getitems__([(0, 0), (0, 1), (0, 2)])
    assert sequence == ["read", "change"] * 3
