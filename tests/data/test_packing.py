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

import numpy as np
import PIL
import pytest
import torch
import torchvision
from helpers import batches, fake_imagenet
from PIL import Image

from layershuffle.commands.pack import pack_command
from layershuffle.data import DecodedImages, ImageFolders, PackedFolders, chunks, from_config, packed, packing
from layershuffle.data.augmentation import Augmentation, Augmented
from layershuffle.data.decoding import READING
from layershuffle.data.pack_index import read_index
from layershuffle.progress_lines import LineClock

rng = np.random.default_rng(0)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Class folders with ImageNet's oddities and others: 24 and 23 images in two classes, in chunks of 4."""
    root = fake_imagenet(tmp_path / "source")
    for folder in (root / split / name for split in ("train", "val") for name in ("n01440764", "n01443537")):
        pixels = Image.fromarray(rng.integers(0, 256, (50, 41, 3), dtype=np.uint8))
        sideways = Image.Exif()
        sideways[0x0112] = 6  # orientation
        pixels.save(folder / "sideways.JPEG", exif=sideways)
        pixels.save(folder / "broken_exif.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + bytes(20))
        pixels.convert("1").save(folder / "bits.PNG")
        pixels.convert("I;16").save(folder / "deep.png")
        pixels.convert("LA").save(folder / "transparent.png")
        pixels.save(folder / "animated.webp", save_all=True, append_images=[pixels.rotate(90)])
        pixels.resize((3, 400)).save(folder / "narrow.jpeg", progressive=True)
        (folder / "notes.txt").write_text("not an image")
    (root / "val" / "n01440764" / "RGB.JPEG").unlink()
    monkeypatch.setattr(chunks, "CHUNK", 4)
    return root


def pack(source, folder, *options):
    pack_command([str(source), str(folder), "--size", "32", "--workers", "0", *options])


def both(source, folder, **arguments):
    pair = [
        cls(str(root), image_size=32, workers=0, **{"val_fraction": 0, **arguments})
        for cls, root in _pair(source, folder)
    ]
    for data in pair:
        data.setup()
    return pair


def _pair(source, folder):
    return ((ImageFolders, source), (PackedFolders, folder))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("workers", ["0", "2"])
def test_packed_is_what_the_folders_give(source, tmp_path, workers):
    pack(source, tmp_path / "packed", "--workers", workers)
    assert sorted(contents(tmp_path / "packed")) == ["index.json", "train.uint8", "val.uint8"]
    folders, ours = both(source, tmp_path / "packed", batch_size=5, train_images=20, val_fraction=0.2)
    assert (ours.num_classes, ours.label) == (folders.num_classes, folders.label) == (2, "source")
    for name, count in (("train", 15), ("val", 4), ("test", 23)):  # the last batch of 16 is incomplete
        loaders = [getattr(data, f"{name}_dataloader")() for data in (folders, ours)]
        if name == "train":
            for loader in loaders:
                loader.sampler.set_epoch(2)
        one, other = map(batches, loaders)
        assert len(one[1]) == count
        assert all(torch.equal(*pair) and pair[0].dtype == pair[1].dtype for pair in zip(one, other))
    image, label = ours.sets["test"][11]
    assert torch.equal(image, other[0][11])
    assert label == other[1][11] == 1


def test_a_module_is_made_again_from_its_config(source, tmp_path):
    pack(source, tmp_path / "packed")
    again = from_config(PackedFolders(str(tmp_path / "packed"), batch_size=3, image_size=32).config())
    again.setup("test")
    assert (again.batch_size, len(again.sets["test"])) == (3, 23)


def test_a_pass_reads_no_image_twice(source, tmp_path, monkeypatch):
    pack(source, tmp_path / "packed")
    data = both(source, tmp_path / "packed", batch_size=4)[1]
    read = []
    read_at = packed.read_at

    def counted(file, offset, rows):
        read.append((offset, rows.nbytes))
        return read_at(file, offset, rows)

    monkeypatch.setattr(packed, "read_at", counted)
    for loader, count in ((data.train_dataloader(), 24), (data.test_dataloader(), 23)):
        read.clear()
        assert sum(len(labels) for _, labels in loader) == len(read) == len(set(read)) == count
        assert {length for _, length in read} == {3 * 32 * 32}
        assert all(offset % (3 * 32 * 32) == 0 for offset, _ in read)


def test_without_a_terminal_lines_say_how_far_it_is(source, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "layershuffle")
    monkeypatch.setattr(LineClock, "strikes", lambda clock: True)
    pack(source, tmp_path / "packed")
    told = [text.split()[:5] for text in caplog.messages if text.startswith(("packing: ", "checking: "))]
    assert told[0] == ["packing:", "4", "of", "47", "images,"]
    assert told[11:13] == [["packing:", "47", "of", "47", "images,"], ["checking:", "4", "of", "47", "images,"]]
    assert told[-1] == ["checking:", "47", "of", "47", "images,"]


def test_images_are_opened_once_however_often_it_is_stopped(source, tmp_path, monkeypatch):
    pack(source, tmp_path / "whole")
    opened = []
    getitem = DecodedImages.decode

    def stopping(images, index):
        opened.append(images.images.samples[index][0])
        if len(opened) in (3, 11, 20, 40):
            raise KeyboardInterrupt
        return getitem(images, index)

    monkeypatch.setattr(DecodedImages, "decode", stopping)
    stops = 0
    while not (tmp_path / "packed" / "index.json").exists():
        assert stops < 10
        try:
            pack(source, tmp_path / "packed")
        except KeyboardInterrupt:
            stops += 1
            with pytest.raises(
                ValueError, match=r"there is no .*index\.json: layershuffle pack .* finishes what it has begun"
            ):
                PackedFolders(str(tmp_path / "packed")).setup()
    assert stops == 4
    assert len(opened) - 47 <= 4 * chunks.CHUNK  # 24 + 23 images, and of each stop the chunk that it fell into
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_killed_it_goes_on_and_ends_with_the_same_bytes(source, tmp_path, monkeypatch, workers):
    pack(source, tmp_path / "whole")
    getitem = DecodedImages.decode
    notes = tmp_path / "packed" / packing.UNFINISHED

    def slow(images, index):
        time.sleep(0.02)
        return getitem(images, index)

    monkeypatch.setattr(DecodedImages, "decode", slow)
    for chunk_count in (0, 2, 5):
        arguments = (source, tmp_path / "packed", "--workers", workers)
        process = multiprocessing.get_context("fork").Process(target=pack, args=arguments)
        process.start()
        while process.is_alive() and not (notes.exists() and notes.read_text().count("[") >= chunk_count):
            time.sleep(0.005)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "packed" / "index.json").exists()
    (tmp_path / "packed" / f".{packing.UNFINISHED}.1").touch()  # which a kill while the notes are written leaves
    pack(source, tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_unreadable_images_are_named_counted_and_can_be_mended(source, tmp_path, capsys, monkeypatch):
    pack(source, tmp_path / "whole")
    broken = [source / "train" / "n01440764" / "L.JPEG", source / "val" / "n01443537" / "sideways.JPEG"]
    good = [(path.read_bytes(), path.stat()) for path in broken]
    broken[0].write_bytes(good[0][0][:300])
    broken[1].write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^2 images of .*source can't be read: replace or remove those named above"):
        pack(source, tmp_path / "packed")
    named = capsys.readouterr().err
    assert all(f"{path} can't be read as an image" in named for path in broken)
    monkeypatch.setattr(packing, "MOST_UNREADABLE", 1)
    with pytest.raises(ValueError, match="^1 image or more"):
        pack(source, tmp_path / "other")
    for path, (content, stat) in zip(broken, good):
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    pack(source, tmp_path / "packed")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_files_that_change_while_it_is_unfinished(source, tmp_path, monkeypatch):
    pack_all_but_the_index(source, tmp_path / "packed", monkeypatch)
    shutil.copy(source / "train" / "n01440764" / "L.JPEG", source / "train" / "n01440764" / "added.JPEG")
    (source / "val" / "n01443537" / "P.JPEG").unlink()
    pack(source, tmp_path / "packed")
    pack(source, tmp_path / "whole")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def pack_all_but_the_index(source, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.delattr(packing, "write_index")
        with pytest.raises(NameError):
            pack(source, folder)


def test_what_the_disk_loses_is_found_before_it_counts(source, tmp_path, monkeypatch):
    pack_all_but_the_index(source, tmp_path / "packed", monkeypatch)
    flip(tmp_path / "packed" / "train.uint8", 5 * 3 * 32 * 32)  # in the second chunk
    pack(source, tmp_path / "packed")  # which packs that chunk again
    pack(source, tmp_path / "whole")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_what_the_disk_loses_during_a_run_is_found_before_it_counts(source, tmp_path, monkeypatch):
    getitem = DecodedImages.decode

    def last_image_damages_the_first(images, index):
        if images.images.samples[index][0].endswith("val/n01443537/transparent.png"):
            flip(tmp_path / "packed" / "train.uint8", 0)
        return getitem(images, index)

    with monkeypatch.context() as patch:
        patch.setattr(DecodedImages, "decode", last_image_damages_the_first)
        with pytest.raises(
            ValueError, match=r"images 0 to 3 of .*train\.uint8 are not what was written: the same command"
        ):
            pack(source, tmp_path / "packed")
    assert not (tmp_path / "packed" / "index.json").exists()
    pack(source, tmp_path / "packed")
    pack(source, tmp_path / "whole")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def test_files_that_change_during_a_run_are_packed_by_the_next(source, tmp_path, monkeypatch):
    getitem = DecodedImages.decode
    changing = source / "train" / "n01440764" / "L.JPEG"

    def last_image_changes_another(images, index):
        if images.images.samples[index][0].endswith("val/n01443537/transparent.png"):
            shutil.copy(source / "train" / "n01443537" / "RGB.JPEG", changing)
        return getitem(images, index)

    with monkeypatch.context() as patch:
        patch.setattr(DecodedImages, "decode", last_image_changes_another)
        with pytest.raises(ValueError, match="is not what .*packed was packed from: the same command packs what has"):
            pack(source, tmp_path / "packed")
    pack(source, tmp_path / "packed")
    pack(source, tmp_path / "whole")
    assert contents(tmp_path / "packed") == contents(tmp_path / "whole")


def flip(path, offset):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_a_finished_folder_is_checked_and_never_changed(source, tmp_path):
    pack(source, tmp_path / "packed")
    before = contents(tmp_path / "packed")
    pack(source, tmp_path / "packed")
    with pytest.raises(ValueError, match="holds images of 32 pixels.*: pack images of 48 pixels.* into another"):
        pack(source, tmp_path / "packed", "--size", "48")
    later = source / "train" / "n99"
    later.mkdir()
    shutil.copy(source / "train" / "n01440764" / "L.JPEG", later)
    with pytest.raises(ValueError, match="val lacks n99: its class folders must be those of .*train"):
        pack(source, tmp_path / "packed")
    shutil.copytree(later, source / "val" / "n99")
    with pytest.raises(ValueError, match=r"is not what .*packed was packed from: pack it into another folder"):
        pack(source, tmp_path / "packed")
    for split in ("train", "val"):
        shutil.rmtree(source / split / "n99")
        shutil.rmtree(source / split / "n01443537")
    with pytest.raises(ValueError, match=r"is not what .*packed was packed from"):
        pack(source, tmp_path / "packed")
    assert contents(tmp_path / "packed") == before


def test_a_finished_folder_with_a_flipped_bit(source, tmp_path):
    pack(source, tmp_path / "packed")
    flip(tmp_path / "packed" / "val.uint8", 0)
    complaint = r"images 0 to 3 of .*val\.uint8 are not what was written: remove the folder and pack it again"
    with pytest.raises(ValueError, match=complaint):
        pack(source, tmp_path / "packed")


def test_random_crops_of_images_that_were_packed_larger_than_the_model_takes(source, tmp_path):
    pack(source, tmp_path / "packed")
    data = PackedFolders(str(tmp_path / "packed"), image_size=24)
    data.setup()
    images = Augmented(data.sets["train"], Augmentation(scale=(0.1, 0.5)), data.image_size, seed=0)
    crops = images.__getitems__([(epoch, 0) for epoch in range(8)])[0]
    assert crops.shape == (8, 3, 24, 24)
    assert len({crop.numpy().tobytes() for crop in crops}) == 8
    assert data.sets["test"][0][0].shape == (3, 32, 32)


def test_damage_that_reading_finds(source, tmp_path):
    folder = tmp_path / "packed"
    pack(source, folder)
    with pytest.raises(ValueError, match=r"holds images of 32 pixels, but the model takes 64: .* --size 64 .*Folders"):
        PackedFolders(str(folder), image_size=64).setup()
    cropped = PackedFolders(str(folder))
    cropped.prepare_for(32, [0.5], [0.5], 0.9, "bicubic", "center")
    with pytest.raises(
        ValueError, match=r"as in the paper, not with crop_pct 0\.9, bicubic and center: read the class"
    ):
        cropped.setup()
    data = both(source, folder)[1]
    os.truncate(folder / "val.uint8", 22 * 3 * 32 * 32)
    with pytest.raises(ValueError, match=r"val\.uint8 ends before its image 22: pack it again"):
        batches(data.test_dataloader())
    with pytest.raises(ValueError, match=r"val\.uint8 has 67,584 bytes, not 70,656: remove"):
        both(source, folder)
    (folder / "val.uint8").unlink()
    with pytest.raises(ValueError, match=r"val\.uint8 could not be read: No such file"):
        batches(data.test_dataloader())
    index = (folder / "index.json").read_text()
    changed = json.loads(index)
    changed["splits"]["train"]["classes"] = {"n01440764": 14, "n01443537": 12}
    for content in (json.dumps(changed), index[:100], "[]"):
        (folder / "index.json").write_text(content)
        with pytest.raises(ValueError, match=r"index\.json is damaged or has been changed: remove"):
            PackedFolders(str(folder)).setup()
    (folder / "index.json").write_text(index.replace('"layershuffle_pack": 1', '"layershuffle_pack": 3'))
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
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 47 * 3 * 32 * 32 - 1))
        with pytest.raises(ValueError, match="0.000144 GB free and 0.000144 GB are needed: free the rest or pack into"):
            pack(source, tmp_path / "packed")
    (tmp_path / "packed" / "train.uint8").symlink_to("/dev/full")
    monkeypatch.setattr(os, "truncate", lambda path, length: None)
    for workers in ("0", "1"):
        with pytest.raises(ValueError, match=r"train\.uint8 could not be written \(No space left on device\): once"):
            pack(source, tmp_path / "packed", "--workers", workers)


@pytest.mark.heavy
def test_two_do_not_pack_into_one_folder(source, tmp_path):
    (tmp_path / "packed").mkdir()
    holder = (
        f"from layershuffle.files import WriterLock; lock = WriterLock({str(tmp_path / 'packed')!r}); "
        "print(flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match=rf"packed is being written by process {other.pid} on"):
            pack(source, tmp_path / "packed")
        other.communicate(b"\n")
    pack(source, tmp_path / "packed")


@pytest.mark.heavy
def test_a_worker_that_is_killed(source, tmp_path, monkeypatch):
    def die(images, index):
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(DecodedImages, "decode", die)
        with pytest.raises(
            ValueError, match="a process that was packing has been killed, .*: the same command continues"
        ):
            pack(source, tmp_path / "packed", "--workers", "1")
    pack(source, tmp_path / "packed")
    assert read_index(tmp_path / "packed").size == 32


def test_the_format_of_finished_folders_stays(source, tmp_path, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK", 256)
    pack(source, tmp_path / "packed")
    index = json.loads((tmp_path / "packed" / "index.json").read_text())
    assert list(index) == ["layershuffle_pack", "name", "size", "splits", "sha256"]
    assert (index["layershuffle_pack"], index["name"], index["size"]) == (1, "source", 32)
    assert index["splits"]["val"]["classes"] == {"n01440764": 11, "n01443537": 12}
    key = hashlib.sha256(repr((1, READING, 32, PIL.__version__, torchvision.__version__)).encode())
    for label, name in enumerate(("n01440764", "n01443537")):
        for path in sorted((source / "val" / name).glob("*.[!t]*")):
            stat = path.stat()
            key.update(repr((f"{name}/{path.name}", label, stat.st_size, stat.st_mtime_ns)).encode())
    pixels = (tmp_path / "packed" / "val.uint8").read_bytes()
    assert index["splits"]["val"]["chunks"] == [[key.hexdigest(), hashlib.sha256(pixels).hexdigest()]]


def test_whole_pictures_are_read_as_squares_or_in_part(source, tmp_path):
    for size in (32, 48):
        pack(source, tmp_path / f"square{size}", "--size", str(size))
        pack(source, tmp_path / f"whole{size}", "--size", str(size), "--whole")
    for name in ("square48", "whole48"):  # larger than the model takes
        data = PackedFolders(str(tmp_path / name), image_size=32, val_fraction=0, workers=0)
        data.setup()
        assert [image.shape for image, _ in data.sets["test"]] == [(3, 48, 48)] * 23
    one, other = (both(source, tmp_path / f"{kind}32", batch_size=5)[1] for kind in ("square", "whole"))
    for split in ("train", "test"):
        loaders = [getattr(data, f"{split}_dataloader")() for data in (one, other)]
        assert all(map(torch.equal, *map(batches, loaders)))
    # The whole picture is the one that is decoded, resized.
    images = other.sets["train"]
    folders = ImageFolders(str(source), image_size=32)
    folders.crop_mode = "whole"
    decoded = folders.read("train")
    shapes = set()
    for index in range(len(images)):
        height, width = images.shapes[index]
        shapes.add((height, width))
        whole = decoded[index][0]
        assert torch.equal(images.regions([index], [(0, 0, height, width)])[0], whole)
        box = (height // 3, width // 3, height // 2, width // 4)
        part = whole[:, box[0] : box[0] + box[2], box[1] : box[1] + box[3]]
        assert torch.equal(images.regions([index], [box])[0], part)
    assert {min(shape) for shape in shapes} == {32}
    assert len(shapes) == 4  # landscape and portrait
    pack(source, tmp_path / "whole32", "--whole")  # which compares it
    with pytest.raises(ValueError, match="holds whole pictures of 32 pixels.*: pack images of 32 pixels.* into"):
        pack(source, tmp_path / "whole32")


def test_random_crops_see_all_of_a_whole_picture_and_read_only_their_rows(source, tmp_path, monkeypatch):
    pack(source, tmp_path / "packed", "--whole")
    data = both(source, tmp_path / "packed")[1]
    images = data.sets["train"]
    cropped = Augmented(images, Augmentation(scale=(0.1, 0.3), flip=0.5), 24, seed=0)
    read, seen = [], []
    read_at, regions = packed.read_at, type(images).regions
    monkeypatch.setattr(packed, "read_at", lambda *args: read.append(read_at(*args)) or read[-1])
    monkeypatch.setattr(type(images), "regions", lambda self, at, boxes: seen.extend(boxes) or regions(self, at, boxes))
    keys = [(epoch, index) for epoch in range(8) for index in range(len(images))]
    crops = cropped.__getitems__(keys)[0]
    assert crops.shape == (len(keys), 3, 24, 24)
    widths = [int(images.shapes[index][1]) for _, index in keys]
    assert sum(read) == sum(3 * height * width for (_, _, height, _), width in zip(seen, widths))
    assert sum(read) < 0.7 * 8 * images.places[-1]
    outside = [left + width > (whole + 32) / 2 + 1 for (_, left, _, width), whole in zip(seen, widths)]
    assert any(outside)  # of the square
    for at in (0, 9, 100):
        assert torch.equal(cropped[keys[at]][0], crops[at])
    os.truncate(images.path, 1000)
    with pytest.raises(ValueError, match=r"train\.uint8 ends before its image"):
        cropped.__getitems__(keys)


def test_a_whole_picture_that_is_mended_moves_those_after_it(source, tmp_path):
    pack(source, tmp_path / "expected", "--whole")
    path = source / "train" / "n01440764" / "L.JPEG"
    good, stat = path.read_bytes(), path.stat()
    path.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"^1 image of .*source can't be read"):
        pack(source, tmp_path / "packed", "--whole")
    path.write_bytes(good)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    pack(source, tmp_path / "packed", "--whole", "--workers", "2")
    assert contents(tmp_path / "packed") == contents(tmp_path / "expected")
