"""A run that goes on from a checkpoint heeds the options of its command, or refuses them."""

import functools
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from helpers import DIGITS, QUIET, fails, train
from lightning.pytorch.callbacks import EarlyStopping

from layershuffle.checkpoints.metadata import CheckpointMetadata
from layershuffle.data import DataConfig
from layershuffle.errors import UserError
from layershuffle.training.checkpointing import BestCheckpoint, LastCheckpoint
from layershuffle.training.continuing import (
    batches_done,
    check_place,
    restore_callbacks,
    warn_of_other_split,
)
from layershuffle.training.module import FineTuner

TINY = [*DIGITS, *QUIET, "--model.timm_args.depth=1", "--data.train_images=160", "--data.batch_size=24"]
# 144 images in 6 batches
LAST = "runs/version_0/checkpoints/last.ckpt"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def epoch(*options):
    """Train for an epoch, in the working folder."""
    train([*TINY, "--trainer.max_epochs=1", *options])


def part_of_an_epoch():
    """Train for two of six steps, in the working folder."""
    original = FineTuner.training_step

    def told_to_stop(module, batch, batch_idx):
        if batch_idx == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(module, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuner, "training_step", told_to_stop)
        with pytest.raises(SystemExit):
            epoch()


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """Trains in an empty folder, in the same way only once; returns the folder."""

    @functools.cache
    def make(training, *options):
        folder = tmp_path_factory.mktemp("training")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            training(*options)
        return folder

    return make


@pytest.fixture
def first(trained_once):
    """Leaves the run of an epoch in the working folder; returns the option that goes on from its checkpoint."""

    def copied(*options):
        shutil.copytree(trained_once(epoch, *options) / "runs", "runs")
        return f"--ckpt_path={LAST}"

    return copied


@pytest.fixture
def within_an_epoch(trained_once):
    """The option that goes on from a run of two of six steps, which is in the working folder."""
    shutil.copytree(trained_once(part_of_an_epoch) / "runs", "runs")
    return f"--ckpt_path={LAST}"


def test_the_optimizers_options_are_heeded(first, capsys):
    ckpt_path = first("--model.schedule.shape=constant")
    options = ["--model.optimizer.lr=1e-6", "--model.optimizer.weight_decay=0.5", "--model.schedule.warmup_steps=0"]
    trainer = train([*TINY, "--trainer.max_epochs=2", "--model.schedule.shape=constant", *options, ckpt_path])
    (group,) = trainer.optimizers[0].param_groups
    assert (group["lr"], group["initial_lr"], group["weight_decay"]) == (1e-6, 1e-6, 0.5)
    assert "lr 1e-06 in place of 0.002" in capsys.readouterr().err
    saved = torch.load("runs/version_1/checkpoints/last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-6


def test_another_schedule_holds_from_the_first_step(first, monkeypatch):
    ckpt_path = first("--model.schedule.warmup_steps=0")
    rates = []
    original = FineTuner.training_step

    def training_step(module, batch, batch_idx):
        rates.append(module.trainer.optimizers[0].param_groups[0]["lr"])
        return original(module, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", training_step)
    constant = ["--model.schedule.shape=constant", "--model.schedule.warmup_steps=0"]
    train([*TINY, "--trainer.max_epochs=2", *constant, ckpt_path])
    assert rates == [2e-3] * 6


@pytest.mark.parametrize(
    "options",
    [
        ["--model.optimizer=Adam"],
        ["--model.optimizer=SGD", "--model.optimizer.lr=0.1"],
        ["--model.optimizer=layershuffle.training.muon.Muon"],
        ["--model.trainable.only=[head]"],
        ["--model.trainable.decay_norms=false"],
        ["--model.optimizer.amsgrad=true"],
    ],
)
def test_the_state_of_another_optimizer_is_refused(first, options):
    ckpt_path = first()
    with pytest.raises(UserError, match="checkpoint to continue from has"):
        train([*TINY, "--trainer.max_epochs=2", *options, ckpt_path])


@pytest.mark.parametrize(
    ("option", "name"),
    [("--data.batch_size=8", "batch_size"), ("--seed=1", "seed"), ("--data.train_images=150", "train_images")],
)
def test_within_an_epoch_the_images_must_come_in_the_same_batches(within_an_epoch, option, name):
    with pytest.raises(UserError, match=f"within an epoch, after 2 batches with {name}"):
        train([*TINY, "--trainer.max_epochs=1", option, within_an_epoch])
    assert train([*TINY, "--trainer.max_epochs=1", within_an_epoch]).global_step == 6


def test_between_epochs_the_batches_may_change(first):
    ckpt_path = first()
    assert train([*TINY, "--trainer.max_epochs=2", "--data.batch_size=8", ckpt_path]).global_step == 6 + 18


def test_the_number_of_processes_counts():
    within = {"epoch_progress": {"current": {"ready": 1, "processed": 0}}}
    within["epoch_loop.batch_progress"] = {"current": {"processed": 7}}
    checkpoint = {"loops": {"fit_loop": within}, "processes": 2}
    assert batches_done(checkpoint) == 7
    metadata = CheckpointMetadata(seed=3, data=DataConfig("Digits", {"batch_size": 5}))
    check_place(checkpoint, metadata, {"seed": 3, "batch_size": 5, "processes": 2})
    with pytest.raises(UserError, match=r"processes 2.*processes 1"):
        check_place(checkpoint, metadata, {"seed": 3, "batch_size": 5, "processes": 1})
    assert batches_done({}) == batches_done({"loops": {"fit_loop": {"epoch_progress": {"current": None}}}}) == 0


def test_the_patience_of_early_stopping_is_heeded():
    before, after = EarlyStopping("val/loss", patience=3), EarlyStopping("val/loss", patience=9)
    checkpoint = {"callbacks": {before.state_key: before.state_dict()}}
    restore_callbacks(checkpoint, [after])
    after.load_state_dict(checkpoint["callbacks"][after.state_key])
    assert after.patience == 9


@pytest.mark.parametrize("path", ["local://{folder}/mine", "{folder}/checkpoints/../mine", "{folder}/mine", "mine", ""])
def test_a_checkpoint_names_no_files_to_remove_but_its_own(tmp_path, path):
    folder = tmp_path / "checkpoints"
    (tmp_path / "mine").mkdir()
    folder.mkdir()
    for name in ("best.ckpt", "other.ckpt", "mine", "best.txt"):
        (folder / name).touch()
    path = path.format(folder=tmp_path)
    for callback in (LastCheckpoint(folder), BestCheckpoint(folder, "best", "val/loss")):
        for name in (path, str(folder / "other.ckpt"), str(folder / "best.txt"), str(folder / "best-v1.ckpt")):
            state = callback.state_dict()
            state.update({"best_model_path": name, "kth_best_model_path": name, "last_model_path": name})
            state["best_k_models"] = {name: torch.tensor(1.0)}
            checkpoint = {"callbacks": {callback.state_key: state}}
            restore_callbacks(checkpoint, [callback])
            callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
            assert {callback.best_model_path, callback.kth_best_model_path, callback.last_model_path} == {""}
            assert callback.best_k_models == {}


def test_the_best_checkpoint_stays_the_best_where_the_folder_is_named_otherwise(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "best.ckpt").touch()
    before = BestCheckpoint("checkpoints", "best", "val/loss")
    before.best_model_path = before.kth_best_model_path = "checkpoints/best.ckpt"
    before.best_model_score = torch.tensor(1.0)
    before.best_k_models = {"checkpoints/best.ckpt": torch.tensor(1.0)}
    checkpoint = {"callbacks": {before.state_key: before.state_dict()}}
    after = BestCheckpoint(folder, "best", "val/loss")
    restore_callbacks(checkpoint, [after])
    after.load_state_dict(checkpoint["callbacks"][after.state_key])
    assert after.best_model_path == after.kth_best_model_path == str(folder / "best.ckpt")
    assert (after.best_k_models, after.best_model_score) == ({str(folder / "best.ckpt"): 1.0}, 1.0)


def test_without_averaging_a_run_goes_on_from_the_weights_that_were_trained(first, monkeypatch):
    ckpt_path = first("--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0.99")
    trained = torch.load(Path(LAST), weights_only=True)["current_model_state"]
    begun = {}

    def on_fit_start(module):
        begun.update({name: value.clone() for name, value in module.state_dict().items()})

    monkeypatch.setattr(FineTuner, "on_train_epoch_start", on_fit_start)
    train([*TINY, "--trainer.max_epochs=2", ckpt_path])
    assert all(torch.equal(value, begun[name]) for name, value in trained.items())


@pytest.mark.parametrize(
    ("current", "mentioned"),
    [
        ({}, []),
        ({"stratified": True}, ["--data.stratified false"]),
        ({"val_fraction": 0.2, "train_images": 100}, ["--data.train_images null", "--data.val_fraction 0.1"]),
    ],
)
def test_other_held_out_images_are_named(caplog, current, mentioned):
    """The checkpoint is from before splits took the same part of every class, which it doesn't say."""
    saved = CheckpointMetadata(data=DataConfig("Digits", {"val_fraction": 0.1, "train_images": None}))
    same = {"val_fraction": 0.1, "train_images": None, "stratified": False, "split_seed": 0}
    warn_of_other_split(saved, same | current)
    assert len(caplog.messages) == bool(mentioned)
    assert all(text in caplog.text for text in mentioned)


def test_within_an_epoch_another_split_is_refused(within_an_epoch):
    with pytest.raises(UserError, match="stratified"):
        train([*TINY, "--trainer.max_epochs=1", within_an_epoch, "--data.stratified=true"])


def test_going_on_with_another_split_warns(first, caplog):
    ckpt_path = first()
    train([*TINY, "--trainer.max_epochs=2", ckpt_path, "--data.split_seed=3"])
    (message,) = [text for text in caplog.messages if "held-out" in text]
    assert "--data.split_seed 0" in message


def test_what_a_training_cannot_go_on_from_is_one_line(capsys):
    """Some of it would make torch write past the end of the optimizer's state."""
    options = [*TINY, "--data.batch_size=72"]
    train([*options, "--trainer.max_epochs=1"])
    Path(LAST).rename("good.ckpt")
    good = torch.load("good.ckpt", weights_only=True)
    parameters = good["optimizer_states"][0]["state"]

    def refused(**changed):
        torch.save({**good, **changed}, "edited.ckpt")
        error = fails(capsys, train, *options, "--trainer.max_epochs=2", "--ckpt_path=edited.ckpt")
        assert "edited.ckpt" in error or "the checkpoint" in error

    weights = {name: value for name, value in good["state_dict"].items() if "norm1" not in name}
    refused(state_dict=weights)
    other_shape = {**parameters[3], "exp_avg": torch.zeros(7, 7)}
    refused(optimizer_states=[{**good["optimizer_states"][0], "state": {**parameters, 3: other_shape}}])
    no_average = {"step": parameters[3]["step"]}
    refused(optimizer_states=[{**good["optimizer_states"][0], "state": {**parameters, 3: no_average}}])
    refused(optimizer_states=[])
    refused(lr_schedulers=[{**good["lr_schedulers"][0], "optimizer": "x"}])
    refused(current_model_state=3)
    refused(callbacks={name: {"best_model_score": "x"} for name in good["callbacks"]})
