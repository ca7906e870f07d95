"""Data sets in the layouts that users have on disk, and the preprocessing against PIL's."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import batches, fake_cifar100, fake_fashion_mnist, fake_imagenet
from lightning.pytorch.strategies import SingleDeviceStrategy
from PIL import Image
from sklearn.model_selection import StratifiedShuffleSplit
from timm.data import create_transform
from torchvision import transforms

from layershuffle.data import (
    DataConfig,
    DecodedImages,
    Digits,
    ImageFolders,
    Preprocess,
    Resizing,
    TorchvisionImages,
    from_config,
)
from layershuffle.data.sets import TensorImages

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's."""

rng = np.random.default_rng(0)


def grey_levels(difference):
    """The largest difference between normalised images [3, height, width], in grey levels of 255."""
    return 255 * (difference * torch.tensor(STD).view(3, 1, 1)).abs().max()


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (300, 260), (224, 224)])
def test_preprocessing_is_the_papers_to_within_rounding(height, width):
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    papers = transforms.Compose(
        [transforms.Resize(224), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )
    by_pil = papers(Image.fromarray(pixels))
    (ours,) = Preprocess(224, MEAN, STD)(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert ours.shape == (3, 224, 224)
    assert ours.dtype == torch.float32
    assert grey_levels(ours - by_pil) <= 1.01


@pytest.mark.parametrize("shape", [(300, 260), (90, 120)])
@pytest.mark.parametrize(
    "resizing", [(0.9, "bicubic", "center"), (0.95, "bicubic", "squash"), (1.0, "bilinear", "center")]
)
def test_resizing_is_timms(shape, resizing):
    crop_pct, interpolation, crop_mode = resizing
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    timms = create_transform(
        (3, 112, 112), mean=MEAN, std=STD, crop_pct=crop_pct, interpolation=interpolation, crop_mode=crop_mode
    )
    by_timm = timms(image)

    preprocess = Preprocess(112, MEAN, STD, *resizing)
    decoded, _ = DecodedImages([(image, 0)], 112, 0, Resizing(*resizing))[0]
    (ours,) = preprocess(decoded[None])
    torch.testing.assert_close(ours, by_timm)

    # Images in memory are resized as tensors, which rounds otherwise: by one grey level of 255, or two with bicubic.
    (in_memory,) = preprocess(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    assert grey_levels(in_memory - by_timm) <= 2.01


def test_a_sets_own_resizing_comes_before_the_models():
    data = Digits(interpolation="bicubic")
    preprocess = data.prepare_for(16, [0.5], [0.5], 0.8, "bilinear", "center")
    assert data.resizing == preprocess.resizing == Resizing(0.8, "bicubic", "center")
    assert from_config(data.config()).resizing == data.resizing
    assert data.image_size == 16
    for crop_pct in (90, 1e-5, math.nan):
        with pytest.raises(ValueError, match=f"crop_pct is a fraction from 0.1 to 1, not {crop_pct}"):
            Digits(crop_pct=crop_pct)


def test_grey_images_fill_the_channels():
    grey = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    coloured = grey.expand(-1, 3, -1, -1)
    preprocess = Preprocess(8, MEAN, STD)
    assert torch.equal(preprocess(grey), preprocess(coloured))
    with pytest.raises(ValueError, match="have 3 channels, but the model takes 1"):
        Preprocess(8, [0.5], [0.5])(coloured)


def test_a_model_is_fed_as_timm_says(small):
    coloured = small("deit_tiny_distilled_patch16_224", in_chans=3)
    preprocess = Preprocess(*coloured.image_format)
    assert preprocess.mean.flatten().tolist() == pytest.approx(MEAN)
    assert preprocess.size == 8

    grey = small()
    assert Preprocess(*grey.image_format).mean.flatten().tolist() == [0.5]


def test_digits_are_split_without_overlap():
    data = Digits()
    data.setup()
    assert {name: len(split) for name, split in data.sets.items()} == {"train": 1294, "val": 144, "test": 359}

    images, labels = next(iter(data.train_dataloader()))
    assert images.dtype == torch.uint8
    assert images.shape == (64, 1, 8, 8)
    assert labels.dtype == torch.int64

    # The digits have 1,797 images, no two of which are equal. The loader of training images would leave some out.
    train = torch.stack([image for image, _ in data.sets["train"]])
    val, _ = batches(data.val_dataloader())
    test, _ = batches(data.test_dataloader())
    whole = torch.cat([train, val, test]).flatten(1)
    assert len(whole) == 1797
    assert len(torch.unique(whole, dim=0)) == 1797
    assert whole.max() == 255


def test_splits_follow_their_seed_alone():
    first = Digits(split_seed=0)
    again = Digits(split_seed=0)
    other = Digits(split_seed=1)
    for data in (first, again, other):
        data.setup()
    assert first.sets["val"].indices == again.sets["val"].indices
    assert first.sets["val"].indices != other.sets["val"].indices
    assert torch.equal(first.sets["test"].images, other.sets["test"].images)


def test_a_subset_and_no_validation_split():
    data = Digits(train_images=100, test_images=30, val_fraction=0)
    data.setup()
    assert len(data.sets["train"]) == 100
    assert data.sets["val"] is data.sets["test"]
    _, labels = batches(data.test_dataloader())
    assert len(labels) == 30

    complaint = r"_images is \d+, but the (train|test) set has ([\d,]+) .*: choose from 1 to \2"
    for arguments in ({"train_images": 2000}, {"test_images": 0}):
        with pytest.raises(ValueError, match=complaint):
            Digits(**arguments).setup()


@pytest.mark.parametrize("arguments", [{"batch_size": 0}, {"val_fraction": 1.0}, {"val_fraction": -0.1}])
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match="batch has at least|val_fraction is a fraction"):
        Digits(**arguments)


def test_a_module_is_made_again_from_its_config():
    data = TorchvisionImages("CIFAR10", 10, root="somewhere", batch_size=7)
    again = from_config(data.config())
    assert type(again) is TorchvisionImages
    assert again.config() == data.config()
    assert again.batch_size == 7
    for bad in (DataConfig("os.system", {}), DataConfig("Digits", {"nope": 1})):
        with pytest.raises(ValueError, match="is not known here"):
            from_config(bad)


def loaders(device, **arguments):
    """Loaders of all splits of the digits, and of two parts of one of them."""
    data = Digits(**arguments)
    data.device = torch.device(device)
    data.setup()
    train = data.train_dataloader()
    train.sampler.set_epoch(3)
    return [train, data.val_dataloader(), data.test_dataloader(), *data.parts("val", 0.5, seed=1)]


def test_on_the_device_batches_are_of_the_same_images_and_nobody_else_reads():
    # The meta device keeps no pixels: what says which images a batch has are the indices.
    loaders_on_device = loaders("meta", on_device=True, workers=2)
    loaders_on_host = loaders("meta", on_device=False, workers=2)
    for on_device, on_host in zip(loaders_on_device, loaders_on_host):
        assert list(on_device.batch_sampler) == list(on_host.batch_sampler)
        assert on_device.num_workers == 0
        assert not on_device.pin_memory
        assert on_host.num_workers == 2
        for loader, device in ((on_device, "meta"), (on_host, "cpu")):
            images, labels = next(iter(loader))
            assert images.device.type == device
            assert labels.device.type == device
            assert images.shape[1:] == (1, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_equal_the_hosts_and_are_not_waited_for():
    loaders_on_device = loaders("cuda:0", on_device=True)
    loaders_on_host = loaders("cuda:0", on_device=False)
    for on_device, on_host in zip(loaders_on_device, loaders_on_host):
        # The first allocation of pinned memory waits.
        next(iter(on_device))
        torch.cuda.set_sync_debug_mode("error")
        try:
            taken = list(on_device)
        finally:
            torch.cuda.set_sync_debug_mode("default")

        for (images, labels), (expected_images, expected_labels) in zip(taken, on_host, strict=True):
            assert images.is_cuda
            assert torch.equal(images.cpu(), expected_images)
            assert labels.is_cuda
            assert torch.equal(labels.cpu(), expected_labels)


BYTES_OF_DIGITS = 1438 * (64 + 8)
"""Of the training and the validation images: each has 64 pixels and a label of 8 bytes."""


@pytest.mark.parametrize(
    ("on_device", "free", "moved"),
    [
        ("auto", 10 * BYTES_OF_DIGITS, True),
        ("auto", 10 * BYTES_OF_DIGITS - 1, False),
        (True, BYTES_OF_DIGITS, True),
        (False, 1e12, False),
    ],
)
def test_a_set_goes_where_there_is_room(monkeypatch, on_device, free, moved):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 0))
    moved_to = []
    monkeypatch.setattr(TensorImages, "move", lambda images, device: moved_to.append(device.type))
    data = Digits(on_device=on_device)
    data.device = torch.device("cuda")
    data.setup()
    data.train_dataloader()
    assert moved_to == ["cuda" if moved else "cpu"]


def test_a_set_that_must_and_cannot_be_on_the_device(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 0))
    with pytest.raises(ValueError, match=r"Digits take 0\.0 GB and the device has 0\.0 GB free: leave on_device out"):
        loaders("cuda", on_device=True)
    data = ImageFolders(str(fake_imagenet(tmp_path)), on_device=True)
    data.setup()
    with pytest.raises(ValueError, match="is read from disk image by image"):
        data.test_dataloader()


def test_no_process_reads_what_another_reads():
    for ranks in (2, 3, 5):
        images_of_a_rank = 1294 // ranks
        seen = set()
        for rank in range(ranks):
            data = Digits(batch_size=1)
            data.trainer = SimpleNamespace(
                world_size=ranks, global_rank=rank, strategy=SingleDeviceStrategy("cpu"), training=False
            )
            data.setup()
            indices = [index for (index,) in data.train_dataloader().batch_sampler]
            assert len(indices) == images_of_a_rank
            seen.update(indices)
        assert len(seen) == ranks * images_of_a_rank


def test_cifar100(tmp_path, monkeypatch):
    pixels = fake_cifar100(tmp_path, monkeypatch)
    data = TorchvisionImages("CIFAR100", 100, root=str(tmp_path))
    data.prepare_data()
    data.setup()
    images, labels = batches(data.test_dataloader())
    assert torch.equal(images, torch.from_numpy(pixels["test"]).view(-1, 3, 32, 32))
    assert labels.tolist() == list(range(100))
    assert len(data.sets["train"]) + len(data.sets["val"]) == 200


def test_labels_beyond_num_classes(tmp_path, monkeypatch):
    fake_cifar100(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match="num_classes is 10, but the test set has labels up to 99"):
        TorchvisionImages("CIFAR100", 10, root=str(tmp_path)).setup()


def test_fashion_mnist(tmp_path):
    pixels = fake_fashion_mnist(tmp_path)
    data = TorchvisionImages("FashionMNIST", 10, root=str(tmp_path))
    data.setup("test")
    assert list(data.sets) == ["test"]
    images, _ = batches(data.test_dataloader())
    assert torch.equal(images, torch.from_numpy(pixels)[:, None])


UNSPLIT = {
    "EuroSAT": "eurosat/2750/class{0}/{1}.jpg",
    "Caltech101": "caltech101/101_ObjectCategories/class{0}/image_{1:04d}.jpg",
    "Caltech256": "caltech256/256_ObjectCategories/00{0}.class/00{0}_{1:04d}.jpg",
    "SUN397": "SUN397/c/class{0}/sun_{1}.jpg",
}
"""The sets that torchvision doesn't split, and the path of image number {1} of class number {0} in each."""


def fake_unsplit(root, name):
    """Ten and five images of two classes, in the layout of a set that torchvision doesn't split."""
    for class_number, count in ((1, 10), (2, 5)):
        for number in range(1, count + 1):
            path = root / UNSPLIT[name].format(class_number, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    if name == "Caltech101":
        (root / "caltech101/101_ObjectCategories/BACKGROUND_Google").mkdir()
    if name == "SUN397":
        (root / "SUN397/ClassName.txt").write_text("/c/class1\n/c/class2\n")


@pytest.mark.parametrize("name", UNSPLIT)
def test_a_set_that_torchvision_does_not_split_is_split_as_by_the_authors(tmp_path, name, capsys):
    fake_unsplit(tmp_path, name)
    data = TorchvisionImages(name, 2, root=str(tmp_path), image_size=16, workers=0, val_fraction=0)
    data.setup()
    line = f"{name} has no official split: 9 of its images, the same for every seed, are for training and 6 for testing"
    assert capsys.readouterr().err.count(line) == 1

    # As in utils/parse_config.py of the authors' code.
    labels = [0] * 10 + [1] * 5
    by_authors = StratifiedShuffleSplit(n_splits=1, test_size=0.4, random_state=0)
    train, test = next(by_authors.split(np.zeros(len(labels)), labels))
    assert data.sets["train"].indices == train.tolist()
    assert data.sets["test"].indices == test.tolist()
    assert sorted([*train, *test]) == list(range(15))

    images, test_labels = batches(data.test_dataloader())
    assert images.shape == (6, 3, 16, 16)
    # 40 % of ten and of five images.
    assert sorted(test_labels.tolist()) == [0, 0, 0, 0, 1, 1]
    assert data.config().args["test_fraction"] == 0.4

    with pytest.raises(ValueError, match=f"num_classes is 1, but {name} has 2 classes"):
        TorchvisionImages(name, 1, root=str(tmp_path)).setup("test")
    with pytest.raises(ValueError, match=f"{name} can't be split with test_fraction 2"):
        TorchvisionImages(name, 2, root=str(tmp_path), test_fraction=2).setup("test")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("EuroSAT", {"train_args": {}, "test_args": {}}),
        ("EuroSAT", {"test_args": {}}),
        ("Caltech101", {"train_args": {"target_type": ["category"]}, "test_args": {"target_type": "category"}}),
        ("CIFAR100", {"test_args": {}}),
        ("CIFAR100", {"train_args": {"train": False}, "test_args": {"train": False}}),
        ("EMNIST", {"train_args": {"split": "mnist", "train": True}, "test_args": {"split": "mnist"}}),
    ],
)
def test_images_for_both_training_and_test_are_refused(tmp_path, monkeypatch, name, arguments):
    if name in UNSPLIT:
        fake_unsplit(tmp_path, name)
    elif name == "CIFAR100":
        fake_cifar100(tmp_path, monkeypatch)
    else:
        # EMNIST's files have the same form, and other names.
        fake_fashion_mnist(tmp_path)
        (tmp_path / "FashionMNIST").rename(tmp_path / "EMNIST")
        for path in list((tmp_path / "EMNIST/raw").iterdir()):
            name_in_emnist = "emnist-mnist-" + path.name.replace("t10k", "test")
            path.rename(path.parent / name_in_emnist)
    for stage in ("fit", "test"):
        with pytest.raises(ValueError, match=f"the training and the test images of {name} would be the same: give"):
            TorchvisionImages(name, 100, root=str(tmp_path), **arguments).setup(stage)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        (
            "CIFAR100",
            "CIFAR100 is not in the folder .*: put train, test, meta into .*cifar-100-python, or add .*download",
        ),
        ("FashionMNIST", "put train-images-idx3-ubyte, .* into .*FashionMNIST/raw, or add .*download=true"),
        ("NoSuchSet", "torchvision has no data set named NoSuchSet"),
    ],
)
def test_what_is_missing_and_where_to_put_it(tmp_path, name, complaint):
    with pytest.raises(ValueError, match=complaint):
        TorchvisionImages(name, 10, root=str(tmp_path)).setup()


def test_nothing_is_downloaded_unasked(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("downloaded")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", refuse)
    data = TorchvisionImages("CIFAR10", 10, root=str(tmp_path))
    data.prepare_data()
    with pytest.raises(ValueError, match="is not in the folder"):
        data.setup()
    with pytest.raises(AssertionError, match="downloaded"):
        TorchvisionImages("CIFAR10", 10, root=str(tmp_path), download=True).prepare_data()


def test_imagenet(tmp_path):
    data = ImageFolders(str(fake_imagenet(tmp_path)), batch_size=4, image_size=32, workers=0)
    assert data.num_classes == 2
    data.setup()
    images, labels = batches(data.test_dataloader())
    assert images.shape == (10, 3, 32, 32)
    assert images.dtype == torch.uint8
    assert labels.tolist() == [0] * 5 + [1] * 5

    # The images of a folder are in the sequence of their names.
    by_pil = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.PILToTensor()])
    for index, mode in enumerate(("CMYK", "L", "P", "RGB", "RGBA")):
        with Image.open(tmp_path / "val" / "n01440764" / f"{mode}.JPEG") as image:
            assert torch.equal(images[index], by_pil(image.convert("RGB")))


def test_broken_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="train has no class folders: put the images"):
        ImageFolders(str(tmp_path)).setup()

    (tmp_path / "narrow/train/n01440764").mkdir(parents=True)
    with pytest.raises(ValueError, match="one class only, n01440764"):
        _ = ImageFolders(str(tmp_path / "narrow")).num_classes

    root = fake_imagenet(tmp_path)
    (root / "val" / "n01440764" / "RGB.JPEG").write_bytes(b"no image")
    data = ImageFolders(str(root), workers=0)
    data.setup()
    with pytest.raises(ValueError, match=r"n01440764/RGB\.JPEG can't be read as an image .*replace or remove it"):
        list(data.test_dataloader())

    (root / "train" / "n99").mkdir()
    with pytest.raises(ValueError, match="val lacks n99: its class folders must be those of .*train"):
        ImageFolders(str(root)).setup()
    (root / "val" / "n99").mkdir()
    with pytest.raises(ValueError, match="n99"):
        ImageFolders(str(root)).setup()


def test_truncated_image_is_named(tmp_path):
    path = fake_imagenet(tmp_path) / "val" / "n01443537" / "RGB.JPEG"
    path.write_bytes(path.read_bytes()[:400])
    data = ImageFolders(str(tmp_path), workers=2)
    data.setup()
    with pytest.raises(ValueError, match=r"n01443537/RGB\.JPEG can't be read"):
        list(data.test_dataloader())
