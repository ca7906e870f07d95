"""A step whose loss or weights were not finite is saved, and ``layershuffle.replay`` finds what was so first."""

import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from helpers import DIGITS, QUIET, configs, fails, fake_imagenet
from safetensors.torch import load_file
from torch.utils.data import Subset

import layershuffle
from layershuffle.commands.replay import replay_command
from layershuffle.commands.train import train_command
from layershuffle.data import Digits, ImageFolders
from layershuffle.data.rereading import read_again
from layershuffle.orders.samplers import Shuffle
from layershuffle.training import step_file

ARGS = [
    *DIGITS,
    *configs("method/layershuffle"),
    *QUIET,
    "--model.timm_args.depth=4",
    "--data.batch_size=16",
    "--data.train_images=200",
    "--trainer.limit_val_batches=1",
    "--trainer.log_every_n_steps=4",
]


class Spoil(pl.Callback):
    """Makes one weight NaN before step 6."""

    @torch.no_grad()
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 6:
            module.model.vit.head.weight[0, 0] = float("nan")


def failed_run(capsys, folder, *options):
    """Train until the loss isn't finite; returns the file that the error names."""
    line = fails(capsys, train_command, *ARGS, f"--trainer.logger.save_dir={folder}", *options)
    (path,) = folder.rglob("non_finite_step_*.safetensors")
    assert str(path) in line
    return path


@pytest.mark.heavy
def test_the_first_layer_of_the_bad_step_is_found(tmp_path, capsys):
    # Its weights are finite after the first update, but too large for the activations of the next step.
    path = failed_run(capsys, tmp_path, "--model.optimizer.lr=1e30")
    found = layershuffle.replay(path)
    order_of_step = Shuffle().sample_step(depth=4, seed=0, step=1)
    assert found.step == 1
    assert found.part == "layer"
    assert found.position == 0
    assert found.order == str(order_of_step)
    assert found.layer == str(order_of_step[0])
    assert found.batch_size == 16
    assert len(found.images) == 16
    assert all(len(image.classes) == 1 for image in found.images)
    # Only the embedding comes before this layer. Its largest value is finite, but too large for the layer.
    (largest,) = found.largest
    assert 1e20 < largest < 1e40
    assert "not finite" in str(found)

    # The file has the images of the batch, by their numbers in the whole training set.
    saved, images = step_file.load(path)
    assert saved.step == 1
    assert saved.epoch == 0
    assert saved.batch == 1
    assert saved.rank == 0
    assert saved.checkpoint is None
    assert saved.orders == [found.order]
    assert saved.indices == [image.index for image in found.images]
    data = Digits(train_images=200)
    data.setup("fit")
    whole = data.sets["train"]
    while isinstance(whole, Subset):
        whole = whole.dataset
    expected = [whole[index] for index in saved.indices]
    assert torch.equal(images, torch.stack([image for image, _ in expected]))
    assert load_file(path)["labels"].tolist() == [int(label) for _, label in expected]

    # Other images than those of the file are no replay, and neither is a run without its options.
    other = tmp_path / "other"
    shutil.copytree(path.parent, other)
    (config,) = other.glob("config.yaml")
    config.write_text(config.read_text().replace("train_images: 200", "train_images: 190"))
    assert "data have changed" in fails(capsys, replay_command, str(other / path.name))
    config.unlink()
    assert "config.yaml" in fails(capsys, replay_command, str(other / path.name))


@pytest.mark.heavy
def test_an_update_that_spoils_the_weights_is_found_in_the_step_before(tmp_path, capsys):
    path = failed_run(capsys, tmp_path, "--model.optimizer.lr=1e41")
    assert path.name == "non_finite_step_1.safetensors"
    found = layershuffle.replay(path)
    assert found.step == 0
    assert found.part == "update"
    assert found.layer is None
    assert "vit.head.weight" in found.weights
    assert not found.gradients


@pytest.mark.heavy
def test_a_run_is_replayed_from_its_last_good_checkpoint(tmp_path, capsys, caplog):
    options = [f"--trainer.callbacks={__name__}.Spoil", "--save_every_n_steps=3"]
    path = failed_run(capsys, tmp_path, *options)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    replay_command([str(path)])
    printed = capsys.readouterr().out
    assert printed.startswith("step 6: ")
    assert "vit.head.weight" in printed
    assert "checkpoints/last.ckpt to step 6" in caplog.text
    after = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}
    assert after == before  # nothing of the run was written


def test_a_batch_of_files_is_read_again_with_their_paths(tmp_path):
    root = fake_imagenet(tmp_path)
    classes = sorted(folder.name for folder in (root / "train").iterdir() if folder.is_dir())
    data = ImageFolders(root=str(root), image_size=16, batch_size=2, workers=0)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    for number, (images, labels) in enumerate(list(loader)):
        batch = read_again(loader, epoch=3, batch=number, rank=0)
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.labels, labels)
        paths = [Path(path) for path in batch.paths]
        assert all(path.is_file() for path in paths)
        assert [path.parent.name for path in paths] == [classes[label] for label in labels]
    assert read_again(data.loader("val"), epoch=3, batch=0, rank=0) is None


@pytest.mark.parametrize("content", [b"", b"no step", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_of_another_kind_is_refused(tmp_path, capsys, content):
    path = tmp_path / "non_finite_step_1.safetensors"
    assert "there is no file" in fails(capsys, replay_command, str(path))
    path.write_bytes(content)
    assert str(path) in fails(capsys, replay_command, str(path))
