"""Packed class folders against the folders themselves; what is packed is packed once, whole, or not at all."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import PIL
import pytest
import torch
import torchvision
from helpers import batches, fake_imagenet
from PIL import ExifTags, Image

from layershuffle.commands.pack import pack_command
from layershuffle.data import DecodedImages, ImageFolders, PackedFolders, chunks, from_config, packed, packing
from layershuffle.data.augmentation import Augmentation, Augmented
from layershuffle.data.decoding import READING
from layershuffle.data.pack_index import read_index
from layershuffle.data.packed import PackedImages
from layershuffle.progress_lines import LineClock

IMAGE_BYTES = 3 * 32 * 32
"""The size of a packed image: three channels of 32 x 32 pixels."""

rng = np.random.default_rng(0)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Class folders with ImageNet's oddities and others: 24 and 23 images in two classes, in chunks of 4."""
    root = fake_imagenet(tmp_path / "source")
    for split in ("train", "val"):
        for class_name in ("n01440764", "n01443537"):
            add_images(root / split / class_name)
    (root / "val" / "n01440764" / "RGB.JPEG").unlink()
    monkeypatch.setattr(chunks, "CHUNK", 4)
    return root


def add_images(folder):
    """Write seven images with further oddities into a folder, and a file that isn't one."""
    image = Image.fromarray(rng.integers(0, 256, (50, 41, 3), dtype=np.uint8))
    sideways = Image.Exif()
    sideways[ExifTags.Base.Orientation] = 6
    image.save(folder / "sideways.JPEG", exif=sideways)
    image.save(folder / "broken_exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20))
    image.convert("1").save(folder / "bits.PNG")
    image.convert("I;16").save(folder / "deep.png")
    image.convert("LA").save(folder / "transparent.png")
    image.save(folder / "animated.webp", save_all=True, append_images=[image.rotate(90)])
    image.resize((3, 400)).save(folder / "narrow.jpeg", progressive=True)
    (folder / "notes.txt").write_text("not an image")


def pack(source, folder, *options):
    """Pack with the command, as squares of 32 pixels and in this process unless the options say otherwise."""
    pack_command([str(source), str(folder), "--size", "32", "--workers", "0", *options])


def pack_all_but_the_index(source, folder, monkeypatch):
    """Pack, but let it fail when all images are there and the index is to be written."""
    with monkeypatch.context() as patch:
        patch.delattr(packing, "write_index")
        with pytest.raises(NameError):
            pack(source, folder)


def data_module(kind, root, **arguments):
    """A data module of this class with images of 32 pixels, set up. By default no training images are held out."""
    arguments.setdefault("val_fraction", 0)
    data = kind(str(root), image_size=32, workers=0, **arguments)
    data.setup()
    return data


def contents(folder):
    """The bytes of each file of a folder, by its name."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def flip_a_bit(path, offset):
    """Change a bit of the byte at this offset of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def restore(path, content, stat):
    """Write what a file had before, and give it the times that it had."""
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("workers", ["0", "2"])
def test_packed_is_what_the_folders_give(source, tmp_path, workers):
    pack(source, tmp_path / "packed", "--workers", workers)
    assert sorted(contents(tmp_path / "packed")) == ["index.json", "train.uint8", "val.uint8"]

    arguments = {"batch_size": 5, "train_images": 20, "val_fraction": 0.2}
    folders = data_module(ImageFolders, source, **arguments)
    ours = data_module(PackedFolders, tmp_path / "packed", **arguments)
    assert ours.num_classes == folders.num_classes == 2
    assert ours.label == folders.label == "source"

    # Of the 16 training images, the last batch of 5 is incomplete, and left out.
    check_equal(folders.train_dataloader(), ours.train_dataloader(), count=15, epoch=2)
    check_equal(folders.val_dataloader(), ours.val_dataloader(), count=4)
    check_equal(folders.test_dataloader(), ours.test_dataloader(), count=23)

    images, labels = batches(ours.test_dataloader())
    image, label = ours.sets["test"][11]
    assert torch.equal(image, images[11])
    assert label == labels[11] == 1


def check_equal(loader, other_loader, count, epoch=None):
    """Two loaders give the same images and labels, so many of them; with an epoch, those of this epoch."""
    if epoch is not None:
        loader.sampler.set_epoch(epoch)
        other_loader.sampler.set_epoch(epoch)
    images, labels = batches(loader)
    other_images, other_labels = batches(other_loader)
    assert len(labels) == count
    assert images.dtype == other_images.dtype
    assert torch.equal(images, other_images)
    assert labels.dtype == other_labels.dtype
    assert torch.equal(labels, other_labels)


def test_a_module_is_made_again_from_its_config(source, tmp_path):
    pack(source, tmp_path / "packed")
    data = PackedFolders(str(tmp_path / "packed"), batch_size=3, image_size=32)
    again = from_config(data.config())
    again.setup("test")
    assert again.batch_size == 3
    assert len(again.sets["test"]) == 23


def test_a_pass_reads_no_image_twice(source, tmp_path, monkeypatch):
    pack(source, tmp_path / "packed")
    data = data_module(PackedFolders, tmp_path / "packed", batch_size=4)
    # The first byte and the number of bytes of each read.
    reads = []
    read_at = packed.read_at

    def noting_read_at(file, offset, rows):
        reads.append((offset, rows.nbytes))
        return read_at(file, offset, rows)

    monkeypatch.setattr(packed, "read_at", noting_read_at)
    for loader, count in ((data.train_dataloader(), 24), (data.test_dataloader(), 23)):
        reads.clear()
        _, labels = batches(loader)
        assert len(labels) == count
        assert len(reads) == len(set(reads)) == count
        for offset, length in reads:
            assert length == IMAGE_BYTES
            assert offset % IMAGE_BYTES == 0


def test_without_a_terminal_lines_say_how_far_it_is(source, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "layershuffle")
    # A line after each chunk, and not only after some time.
    monkeypatch.setattr(LineClock, "strikes", lambda clock: True)
    pack(source, tmp_path / "packed")

    # 12 chunks are packed, and then checked. How much time is left, after the comma, is left out here.
    lines = [text.split(",")[0] for text in caplog.messages if text.startswith(("packing: ", "checking: "))]
    assert lines[0] == "packing: 4 of 47 images"
    assert lines[11] == "packing: 47 of 47 images"
    assert lines[12] == "checking: 4 of 47 images"
    assert lines[-1] == "checking: 47 of 47 images"


def test_images_are_opened_once_however_often_it_is_stopped(source, tmp_path, monkeypatch):
    pack(source, tmp_path / "whole")
    opened = []
    decode = DecodedImages.decode

    def stopping_decode(images, index):
        path, _ = images.images.samples[index]
        opened.append(path)
        if len(opened) in (3, 11, 20, 40):
            raise KeyboardInterrupt
        return decode(images, index)

    monkeypatch.setattr(DecodedImages, "decode", stopping_decode)
    stops = 0
    while not (tmp_path / "packed" / "index.json").exists():
        assert stops < 10
        try:
            pack(source, tmp_path / "packed")
        except KeyboardInterrupt:
            stops += 1
            complaint = r"there is no .*index\.json: layershuffle pack .* finishes what it has begun"
            with pytest.raises(ValueError, match=complaint):
                PackedFolders(str(tmp_path / "packed")).setup()
    assert stops == 4
    # Of each stop, the chunk that it fell into is read again.
    opened_again = len(opened) - (24 + 23)
    assert opened_again <= 4 * chunks.CHUNK
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_it_goes_on_and_ends_with_the_same_bytes(source, tmp_path, monkeypatch, workers):
    pack(source, tmp_path / "whole")
    decode = DecodedImages.decode

    def slow_decode(images, index):
        time.sleep(0.02)
        return decode(images, index)

    def count_of_notes():
        """How many chunks are noted to be written; -1 before there are notes."""
        notes = tmp_path / "packed" / packing.UNFINISHED
        if not notes.exists():
            return -1
        # Each note is a list.
        return notes.read_text().count("[")

    monkeypatch.setattr(DecodedImages, "decode", slow_decode)
    for chunk_count in (0, 2, 5):
        arguments = (source, tmp_path / "packed", "--workers", workers)
        process = multiprocessing.get_context("fork").Process(target=pack, args=arguments)
        process.start()
        while process.is_alive() and count_of_notes() < chunk_count:
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "packed" / "index.json").exists()

    # A kill while the notes are written leaves such a file.
    (tmp_path / "packed" / f".{packing.UNFINISHED}.1").touch()
    pack(source, tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_unreadable_images_are_named_counted_and_can_be_mended(source, tmp_path, capsys, monkeypatch):
    pack(source, tmp_path / "whole")
    cut_short = source / "train" / "n01440764" / "L.JPEG"
    no_image = source / "val" / "n01443537" / "sideways.JPEG"
    before = {path: (path.read_bytes(), path.stat()) for path in (cut_short, no_image)}
    os.truncate(cut_short, 300)
    no_image.write_bytes(b"no image")

    with pytest.raises(ValueError, match=r"^2 images of .*source can't be read: replace or remove those named above"):
        pack(source, tmp_path / "packed")
    errors = capsys.readouterr().err
    for path in (cut_short, no_image):
        assert f"{path} can't be read as an image" in errors

    monkeypatch.setattr(packing, "MOST_UNREADABLE", 1)
    with pytest.raises(ValueError, match="^1 image or more"):
        pack(source, tmp_path / "other")

    for path, (content, stat) in before.items():
        restore(path, content, stat)
    pack(source, tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_files_that_change_while_it_is_unfinished(source, tmp_path, monkeypatch):
    pack_all_but_the_index(source, tmp_path / "packed", monkeypatch)
    shutil.copy(source / "train" / "n01440764" / "L.JPEG", source / "train" / "n01440764" / "added.JPEG")
    (source / "val" / "n01443537" / "P.JPEG").unlink()
    pack(source, tmp_path / "packed")
    pack(source, tmp_path / "whole")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_what_the_disk_loses_is_found_before_it_counts(source, tmp_path, monkeypatch):
    pack_all_but_the_index(source, tmp_path / "packed", monkeypatch)
    # In the second chunk, whose images are 4 to 7. It is packed again.
    flip_a_bit(tmp_path / "packed" / "train.uint8", 5 * IMAGE_BYTES)
    pack(source, tmp_path / "packed")
    pack(source, tmp_path / "whole")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_what_the_disk_loses_during_a_run_is_found_before_it_counts(source, tmp_path, monkeypatch):
    decode = DecodedImages.decode

    def last_image_damages_the_first(images, index):
        path, _ = images.images.samples[index]
        if path.endswith("val/n01443537/transparent.png"):
            flip_a_bit(tmp_path / "packed" / "train.uint8", 0)
        return decode(images, index)

    complaint = r"images 0 to 3 of .*train\.uint8 are not what was written: the same command"
    with monkeypatch.context() as patch:
        patch.setattr(DecodedImages, "decode", last_image_damages_the_first)
        with pytest.raises(ValueError, match=complaint):
            pack(source, tmp_path / "packed")
    assert not (tmp_path / "packed" / "index.json").exists()
    pack(source, tmp_path / "packed")
    pack(source, tmp_path / "whole")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_files_that_change_during_a_run_are_packed_by_the_next(source, tmp_path, monkeypatch):
    decode = DecodedImages.decode
    changing = source / "train" / "n01440764" / "L.JPEG"

    def last_image_changes_another(images, index):
        path, _ = images.images.samples[index]
        if path.endswith("val/n01443537/transparent.png"):
            shutil.copy(source / "train" / "n01443537" / "RGB.JPEG", changing)
        return decode(images, index)

    with monkeypatch.context() as patch:
        patch.setattr(DecodedImages, "decode", last_image_changes_another)
        with pytest.raises(ValueError, match="is not what .*packed was packed from: the same command packs what has"):
            pack(source, tmp_path / "packed")
    pack(source, tmp_path / "packed")
    pack(source, tmp_path / "whole")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_a_finished_folder_is_checked_and_never_changed(source, tmp_path):
    pack(source, tmp_path / "packed")
    before = contents(tmp_path / "packed")
    pack(source, tmp_path / "packed")
    with pytest.raises(ValueError, match="holds images of 32 pixels.*: pack images of 48 pixels.* into another"):
        pack(source, tmp_path / "packed", "--size", "48")

    # A class more, at first without test images.
    later = source / "train" / "n99"
    later.mkdir()
    shutil.copy(source / "train" / "n01440764" / "L.JPEG", later)
    with pytest.raises(ValueError, match="val lacks n99: its class folders must be those of .*train"):
        pack(source, tmp_path / "packed")
    shutil.copytree(later, source / "val" / "n99")
    with pytest.raises(ValueError, match=r"is not what .*packed was packed from: pack it into another folder"):
        pack(source, tmp_path / "packed")

    # A class less.
    for split in ("train", "val"):
        shutil.rmtree(source / split / "n99")
        shutil.rmtree(source / split / "n01443537")
    with pytest.raises(ValueError, match=r"is not what .*packed was packed from"):
        pack(source, tmp_path / "packed")
    assert contents(tmp_path / "packed") == before


def test_a_finished_folder_with_a_flipped_bit(source, tmp_path):
    pack(source, tmp_path / "packed")
    flip_a_bit(tmp_path / "packed" / "val.uint8", 0)
    complaint = r"images 0 to 3 of .*val\.uint8 are not what was written: remove the folder and pack it again"
    with pytest.raises(ValueError, match=complaint):
        pack(source, tmp_path / "packed")


def test_random_crops_of_images_that_were_packed_larger_than_the_model_takes(source, tmp_path):
    pack(source, tmp_path / "packed")
    data = PackedFolders(str(tmp_path / "packed"), image_size=24)
    data.setup()
    images = Augmented(data.sets["train"], Augmentation(scale=(0.1, 0.5)), data.image_size, seed=0)
    # The first image in eight epochs: eight crops that differ.
    crops, _ = images.__getitems__([(epoch, 0) for epoch in range(8)])
    assert crops.shape == (8, 3, 24, 24)
    assert len({crop.numpy().tobytes() for crop in crops}) == 8

    test_image, _ = data.sets["test"][0]
    assert test_image.shape == (3, 32, 32)


def test_damage_that_reading_finds(source, tmp_path):
    folder = tmp_path / "packed"
    pack(source, folder)
    with pytest.raises(ValueError, match=r"holds images of 32 pixels, but the model takes 64: .* --size 64 .*Folders"):
        PackedFolders(str(folder), image_size=64).setup()
    cropped = PackedFolders(str(folder))
    cropped.prepare_for(32, [0.5], [0.5], 0.9, "bicubic", "center")
    with pytest.raises(ValueError, match=r"in the paper, not with crop_pct 0\.9, bicubic and center: read the class"):
        cropped.setup()

    # A file that has lost the last of its 23 images, and then is gone.
    data = data_module(PackedFolders, folder)
    os.truncate(folder / "val.uint8", 22 * IMAGE_BYTES)
    with pytest.raises(ValueError, match=r"val\.uint8 ends before its image 22: pack it again"):
        batches(data.test_dataloader())
    with pytest.raises(ValueError, match=r"val\.uint8 has 67,584 bytes, not 70,656: remove"):
        data_module(PackedFolders, folder)
    (folder / "val.uint8").unlink()
    with pytest.raises(ValueError, match=r"val\.uint8 could not be read: No such file"):
        batches(data.test_dataloader())

    # An index with other counts of images, one that was cut short, and one that is none.
    path = folder / "index.json"
    index = path.read_text()
    changed = json.loads(index)
    changed["splits"]["train"]["classes"] = {"n01440764": 14, "n01443537": 12}
    for content in (json.dumps(changed), index[:100], "[]"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"index\.json is damaged or has been changed: remove"):
            PackedFolders(str(folder)).setup()

    path.write_text(index.replace('"layershuffle_pack": 1', '"layershuffle_pack": 3'))
    with pytest.raises(ValueError, match="packed by another version"):
        PackedFolders(str(folder)).setup()


def test_where_it_can_not_pack(source, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="there is no folder .*nowhere: name the one"):
        pack(tmp_path / "nowhere", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()

    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: give a folder"):
        pack(source, tmp_path / "file")
    with pytest.raises(ValueError, match="--size"):
        pack(source, tmp_path / "packed", "--size", "0")

    # For the 47 images, a byte is missing.
    free = 47 * IMAGE_BYTES - 1
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, used=0, free=free))
        with pytest.raises(ValueError, match="0.000144 GB free and 0.000144 GB are needed: free the rest or pack into"):
            pack(source, tmp_path / "packed")

    # Whatever is written to this device fails as on a full disk.
    (tmp_path / "packed" / "train.uint8").symlink_to("/dev/full")
    monkeypatch.setattr(os, "truncate", lambda path, length: None)
    for workers in ("0", "1"):
        with pytest.raises(ValueError, match=r"train\.uint8 could not be written \(No space left on device\): once"):
            pack(source, tmp_path / "packed", "--workers", workers)


@pytest.mark.heavy
def test_two_do_not_pack_into_one_folder(source, tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    code = f"""
from layershuffle.files import WriterLock
lock = WriterLock({str(folder)!r})
print(flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        # Once it has printed something it holds the lock, and once it can read something it ends.
        other.stdout.readline()
        with pytest.raises(ValueError, match=rf"packed is being written by process {other.pid} on"):
            pack(source, folder)
        other.communicate(b"\n")
    pack(source, folder)


@pytest.mark.heavy
def test_a_worker_that_is_killed(source, tmp_path, monkeypatch):
    def die(images, index):
        os.kill(os.getpid(), signal.SIGKILL)

    complaint = "a process that was packing has been killed, .*: the same command continues"
    with monkeypatch.context() as patch:
        patch.setattr(DecodedImages, "decode", die)
        with pytest.raises(ValueError, match=complaint):
            pack(source, tmp_path / "packed", "--workers", "1")
    pack(source, tmp_path / "packed")
    assert read_index(tmp_path / "packed").size == 32


def test_the_format_of_finished_folders_stays(source, tmp_path, monkeypatch):
    # All images of a split are in one chunk.
    monkeypatch.setattr(chunks, "CHUNK", 256)
    pack(source, tmp_path / "packed")
    index = json.loads((tmp_path / "packed" / "index.json").read_text())
    assert list(index) == ["layershuffle_pack", "name", "size", "splits", "sha256"]
    assert index["layershuffle_pack"] == 1
    assert index["name"] == "source"
    assert index["size"] == 32
    assert index["splits"]["val"]["classes"] == {"n01440764": 11, "n01443537": 12}

    # The note of a chunk: what was read and how, and what was written.
    key = hashlib.sha256(repr((1, READING, 32, PIL.__version__, torchvision.__version__)).encode())
    for label, class_name in enumerate(("n01440764", "n01443537")):
        # All files but notes.txt.
        for path in sorted((source / "val" / class_name).glob("*.[!t]*")):
            stat = path.stat()
            key.update(repr((f"{class_name}/{path.name}", label, stat.st_size, stat.st_mtime_ns)).encode())
    pixels = (tmp_path / "packed" / "val.uint8").read_bytes()
    note = [key.hexdigest(), hashlib.sha256(pixels).hexdigest()]
    assert index["splits"]["val"]["chunks"] == [note]


def test_whole_pictures_are_read_as_squares_or_in_part(source, tmp_path):
    for size in (32, 48):
        pack(source, tmp_path / f"square{size}", "--size", str(size))
        pack(source, tmp_path / f"whole{size}", "--size", str(size), "--whole")

    # Larger than the model takes: they are resized later, on the device.
    for name in ("square48", "whole48"):
        data = data_module(PackedFolders, tmp_path / name)
        assert [image.shape for image, _ in data.sets["test"]] == [(3, 48, 48)] * 23

    # Read as squares, whole pictures give the same as squares.
    squares = data_module(PackedFolders, tmp_path / "square32", batch_size=5)
    wholes = data_module(PackedFolders, tmp_path / "whole32", batch_size=5)
    check_equal(squares.train_dataloader(), wholes.train_dataloader(), count=20)
    check_equal(squares.test_dataloader(), wholes.test_dataloader(), count=23)

    # The whole picture is the one that is decoded, resized.
    images = wholes.sets["train"]
    folders = ImageFolders(str(source), image_size=32)
    folders.crop_mode = "whole"
    decoded = folders.read("train")
    shapes = set()
    for index in range(len(images)):
        height, width = images.shapes[index]
        shapes.add((height, width))
        whole, _ = decoded[index]
        (read_whole,) = images.regions([index], [(0, 0, height, width)])
        assert torch.equal(read_whole, whole)

        top = height // 3
        left = width // 3
        part_height = height // 2
        part_width = width // 4
        (read_part,) = images.regions([index], [(top, left, part_height, part_width)])
        assert torch.equal(read_part, whole[:, top : top + part_height, left : left + part_width])
    assert {min(shape) for shape in shapes} == {32}
    # Of the pictures of 60 x 40 and 61 x 40 pixels, of 41 x 50, of 41 x 50 turned sideways, and of 3 x 400.
    assert len(shapes) == 4

    # Packed again, it is compared.
    pack(source, tmp_path / "whole32", "--whole")
    with pytest.raises(ValueError, match="holds whole pictures of 32 pixels.*: pack images of 32 pixels.* into"):
        pack(source, tmp_path / "whole32")


def test_random_crops_see_all_of_a_whole_picture_and_read_only_their_rows(source, tmp_path, monkeypatch):
    pack(source, tmp_path / "packed", "--whole")
    data = data_module(PackedFolders, tmp_path / "packed")
    images = data.sets["train"]
    cropped = Augmented(images, Augmentation(scale=(0.1, 0.3), flip=0.5), 24, seed=0)

    # How many bytes each read gave, and the box of each crop.
    byte_counts = []
    boxes = []
    read_at = packed.read_at
    regions = PackedImages.regions

    def noting_read_at(file, start, rows):
        byte_count = read_at(file, start, rows)
        byte_counts.append(byte_count)
        return byte_count

    def noting_regions(images, indices, boxes_of_crops):
        boxes.extend(boxes_of_crops)
        return regions(images, indices, boxes_of_crops)

    monkeypatch.setattr(packed, "read_at", noting_read_at)
    monkeypatch.setattr(PackedImages, "regions", noting_regions)
    epochs = 8
    keys = [(epoch, index) for epoch in range(epochs) for index in range(len(images))]
    crops, _ = cropped.__getitems__(keys)
    assert crops.shape == (len(keys), 3, 24, 24)

    expected_bytes = 0
    outside_the_square = 0
    for (_, index), (_, left, height, width) in zip(keys, boxes, strict=True):
        whole_width = int(images.shapes[index][1])
        expected_bytes += 3 * height * whole_width
        # The square of 32 pixels is in the middle, and its place is rounded.
        right_edge_of_square = (whole_width + 32) / 2
        if left + width > right_edge_of_square + 1:
            outside_the_square += 1
    assert sum(byte_counts) == expected_bytes
    bytes_of_all_images = images.places[-1]
    assert expected_bytes < 0.7 * epochs * bytes_of_all_images
    assert outside_the_square > 0

    for at in (0, 9, 100):
        crop, _ = cropped[keys[at]]
        assert torch.equal(crop, crops[at])
    os.truncate(images.path, 1000)
    with pytest.raises(ValueError, match=r"train\.uint8 ends before its image"):
        cropped.__getitems__(keys)


def test_a_whole_picture_that_is_mended_moves_those_after_it(source, tmp_path):
    pack(source, tmp_path / "expected", "--whole")
    path = source / "train" / "n01440764" / "L.JPEG"
    content = path.read_bytes()
    stat = path.stat()
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^1 image of .*source can't be read"):
        pack(source, tmp_path / "packed", "--whole")

    restore(path, content, stat)
    pack(source, tmp_path / "packed", "--whole", "--workers", "2")
    assert contents(tmp_path / "packed") == contents(tmp_path / "expected")
