"""A run that goes on from a checkpoint heeds the options of its command, or refuses them."""

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
STEPS_PER_EPOCH = 6
"""Without the 16 held-out images, 144 are left, which are 6 batches of 24."""
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


@pytest.fixture
def first(trained_once):
    """Makes a function that leaves the run of an epoch in the working folder.

    It returns the option that goes on from the run's checkpoint.
    """

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
    constant = "--model.schedule.shape=constant"
    ckpt_path = first(constant)

    options = ["--model.optimizer.lr=1e-6", "--model.optimizer.weight_decay=0.5", "--model.schedule.warmup_steps=0"]
    trainer = train([*TINY, "--trainer.max_epochs=2", constant, *options, ckpt_path])

    (group,) = trainer.optimizers[0].param_groups
    assert group["lr"] == 1e-6
    assert group["initial_lr"] == 1e-6
    assert group["weight_decay"] == 0.5
    assert "lr 1e-06 in place of 0.002" in capsys.readouterr().err
    saved = torch.load("runs/version_1/checkpoints/last.ckpt", weights_only=True)
    assert saved["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-6


def test_another_schedule_holds_from_the_first_step(first, monkeypatch):
    ckpt_path = first("--model.schedule.warmup_steps=0")

    rates = []
    original = FineTuner.training_step

    def noted(module, batch, batch_idx):
        rates.append(module.trainer.optimizers[0].param_groups[0]["lr"])
        return original(module, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", noted)
    constant = ["--model.schedule.shape=constant", "--model.schedule.warmup_steps=0"]
    train([*TINY, "--trainer.max_epochs=2", *constant, ckpt_path])

    assert rates == [2e-3] * STEPS_PER_EPOCH


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

    trainer = train([*TINY, "--trainer.max_epochs=1", within_an_epoch])
    assert trainer.global_step == STEPS_PER_EPOCH


def test_between_epochs_the_batches_may_change(first):
    ckpt_path = first()
    trainer = train([*TINY, "--trainer.max_epochs=2", "--data.batch_size=8", ckpt_path])

    # Batches of a third of the size are three times as many.
    assert trainer.global_step == STEPS_PER_EPOCH + 3 * STEPS_PER_EPOCH


def test_the_number_of_processes_counts():
    # A run of two processes that was stopped within an epoch, as Lightning describes it.
    loops = {
        "epoch_progress": {"current": {"ready": 1, "processed": 0}},
        "epoch_loop.batch_progress": {"current": {"processed": 7}},
    }
    checkpoint = {"loops": {"fit_loop": loops}, "processes": 2}
    assert batches_done(checkpoint) == 7

    metadata = CheckpointMetadata(seed=3, data=DataConfig("Digits", {"batch_size": 5}))
    check_place(checkpoint, metadata, {"seed": 3, "batch_size": 5, "processes": 2})
    with pytest.raises(UserError, match=r"processes 2.*processes 1"):
        check_place(checkpoint, metadata, {"seed": 3, "batch_size": 5, "processes": 1})

    # Files from elsewhere may lack the loops.
    assert batches_done({}) == 0
    assert batches_done({"loops": {"fit_loop": {"epoch_progress": {"current": None}}}}) == 0


def restored(callback, checkpoint):
    """Give a callback its part of a checkpoint, as a run that goes on does; returns the callback."""
    restore_callbacks(checkpoint, [callback])
    callback.load_state_dict(checkpoint["callbacks"][callback.state_key])
    return callback


def test_the_patience_of_early_stopping_is_heeded():
    before = EarlyStopping("val/loss", patience=3)
    checkpoint = {"callbacks": {before.state_key: before.state_dict()}}

    after = restored(EarlyStopping("val/loss", patience=9), checkpoint)
    assert after.patience == 9


@pytest.mark.parametrize("path", ["local://{folder}/mine", "{folder}/checkpoints/../mine", "{folder}/mine", "mine", ""])
def test_a_checkpoint_names_no_files_to_remove_but_its_own(tmp_path, path):
    folder = tmp_path / "checkpoints"
    (tmp_path / "mine").mkdir()
    folder.mkdir()
    for name in ("best.ckpt", "other.ckpt", "mine", "best.txt"):
        (folder / name).touch()

    # The path of the case, two files that are no checkpoints of the callback, and one that doesn't exist.
    named = [
        path.format(folder=tmp_path),
        str(folder / "other.ckpt"),
        str(folder / "best.txt"),
        str(folder / "best-v1.ckpt"),
    ]
    for callback in (LastCheckpoint(folder), BestCheckpoint(folder, "best", "val/loss")):
        for name in named:
            state = callback.state_dict()
            state["best_model_path"] = name
            state["kth_best_model_path"] = name
            state["last_model_path"] = name
            state["best_k_models"] = {name: torch.tensor(1.0)}
            restored(callback, {"callbacks": {callback.state_key: state}})

            assert callback.best_model_path == ""
            assert callback.kth_best_model_path == ""
            assert callback.last_model_path == ""
            assert callback.best_k_models == {}


def test_the_best_checkpoint_stays_the_best_where_the_folder_is_named_otherwise(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "best.ckpt").touch()

    before = BestCheckpoint("checkpoints", "best", "val/loss")
    before.best_model_path = "checkpoints/best.ckpt"
    before.kth_best_model_path = "checkpoints/best.ckpt"
    before.best_model_score = torch.tensor(1.0)
    before.best_k_models = {"checkpoints/best.ckpt": torch.tensor(1.0)}
    checkpoint = {"callbacks": {before.state_key: before.state_dict()}}

    after = restored(BestCheckpoint(folder, "best", "val/loss"), checkpoint)
    best = str(folder / "best.ckpt")
    assert after.best_model_path == best
    assert after.kth_best_model_path == best
    assert after.best_model_score == 1.0
    assert after.best_k_models == {best: 1.0}


def test_without_averaging_a_run_goes_on_from_the_weights_that_were_trained(first, monkeypatch):
    ckpt_path = first("--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0.99")
    trained = torch.load(LAST, weights_only=True)["current_model_state"]

    weights_at_start = {}

    def on_train_epoch_start(module):
        for name, value in module.state_dict().items():
            weights_at_start[name] = value.clone()

    monkeypatch.setattr(FineTuner, "on_train_epoch_start", on_train_epoch_start)
    train([*TINY, "--trainer.max_epochs=2", ckpt_path])

    for name, value in trained.items():
        assert torch.equal(value, weights_at_start[name])


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

    number_of_warnings = 1 if mentioned else 0
    assert len(caplog.messages) == number_of_warnings
    for text in mentioned:
        assert text in caplog.text


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

    def refused(**changed):
        """Go on from a checkpoint in which these parts are other ones, which must fail with one line."""
        torch.save({**good, **changed}, "edited.ckpt")
        error = fails(capsys, train, *options, "--trainer.max_epochs=2", "--ckpt_path=edited.ckpt")
        assert "edited.ckpt" in error or "the checkpoint" in error

    # Weights are missing.
    refused(state_dict={name: value for name, value in good["state_dict"].items() if "norm1" not in name})

    # The optimizer's state of one parameter has another shape or lacks the averages, or there is no state at all.
    optimizer = good["optimizer_states"][0]
    of_parameters = optimizer["state"]
    other_shape = {**of_parameters[3], "exp_avg": torch.zeros(7, 7)}
    no_average = {"step": of_parameters[3]["step"]}
    refused(optimizer_states=[{**optimizer, "state": {**of_parameters, 3: other_shape}}])
    refused(optimizer_states=[{**optimizer, "state": {**of_parameters, 3: no_average}}])
    refused(optimizer_states=[])

    # Other parts have values of the wrong types.
    refused(lr_schedulers=[{**good["lr_schedulers"][0], "optimizer": "x"}])
    refused(current_model_state=3)
    refused(callbacks={name: {"best_model_score": "x"} for name in good["callbacks"]})
