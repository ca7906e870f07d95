"""``layershuffle.train``: a run composed by names and options, which is the run of the same command."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest
import torch

import layershuffle
from layershuffle import UserError
from layershuffle.api.compose import compose
from layershuffle.api.train import TrainingStopped, as_options
from layershuffle.commands.train import train_command
from layershuffle.training.checkpointing import BestCheckpoint
from layershuffle.training.module import FineTuner

SMALL = {"model.timm_args.depth": 2, "data.train_images": 128, "trainer.enable_progress_bar": False}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def small(*args, options=None, **kwargs):
    """Train a small model; the arguments are those of ``layershuffle.train`` after the model and the data."""
    return layershuffle.train("mini_digits", "digits", *args, trainer="cpu", options=SMALL | (options or {}), **kwargs)


def test_a_call_trains_what_the_command_trains():
    by_call = small("layershuffle_position", optimizer="mini", max_epochs=1, seed=3, folder="by/call", batch_size=50)
    names = ["mini_digits", "digits", "layershuffle_position", "mini", "cpu"]
    options = ["--trainer.max_epochs=1", "--seed=3", "--data.batch_size=50", *as_options(SMALL)]
    folder = ["--trainer.logger.save_dir=by", "--trainer.logger.version=command"]
    by_command = train_command([*names, *options, *folder])

    assert by_call.folder.as_posix() == "by/call"
    assert by_call.best.as_posix() == "by/call/checkpoints/best.ckpt"
    assert by_call.last.is_file()
    assert (by_call.folder / "config.yaml").is_file()
    assert {"train/loss", "val/loss", "val/sequential"} <= set(by_call.metrics)
    # Of 128 images, 115 are for training: two whole batches.
    assert by_call.compute.images == 100
    assert by_call.compute.updates == 2
    weights = torch.load(by_call.last, weights_only=True)["state_dict"]
    weights_by_command = torch.load(by_command.last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, weights_by_command[name]) for name, value in weights.items())


def test_resuming_continues_the_run_of_the_same_call():
    one_update = {"trainer.limit_train_batches": 1}
    first = small(max_epochs=1, resume=True, options=one_update)
    again = small(max_epochs=1, resume=True, options=one_update)
    assert first.folder == again.folder
    assert again.trainer.ckpt_path.endswith("last.ckpt")
    other = small(max_epochs=1, resume=True, learning_rate=0.5, options=one_update)
    assert other.folder != first.folder


def test_a_model_may_be_one_of_timm():
    options = {
        "model.timm_args": helpers.SMALL | {"depth": 2},
        "model.pretrained": False,
        "data.train_images": 64,
        "trainer.enable_progress_bar": False,
    }
    run = layershuffle.train("vit_tiny_patch16_224", "digits", trainer="cpu", max_steps=1, options=options)
    assert run.trainer.lightning_module.model.depth == 2
    assert run.best is None or run.best.is_file()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"model": "vit_b61"}, "vit_b16"),
        ({"method": "nonsense"}, "nonsense"),
        ({"options": {"trainer.max_step": 1}}, "--trainer.max_steps"),
        ({"max_epochs": "many"}, "--trainer.max_epochs"),
    ],
)
def test_what_is_wrong_is_a_user_error(arguments, complaint):
    right = {"model": "mini_digits", "data": "digits", "trainer": "cpu"}
    with pytest.raises(UserError, match=complaint):
        layershuffle.train(**(right | arguments))


def test_a_signal_raises_and_ends_no_process(monkeypatch):
    original = FineTuner.training_step

    def told_to_stop(module, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)  # as SLURM or a user's kill does
        return original(module, batch, batch_idx)

    monkeypatch.setattr(FineTuner, "training_step", told_to_stop)
    with pytest.raises(TrainingStopped, match="SIGTERM: stopped after step 1") as stop:
        small(max_epochs=1)
    assert stop.value.exit_code == 128 + signal.SIGTERM


def test_shortcuts_reach_the_trainer():
    args = ["mini_digits", "digits", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    run = compose([*args, "--accelerator=cpu", "--precision=bf16-mixed"])
    assert run.trainer.precision == "bf16-mixed"
    assert run.config.trainer.accelerator == "cpu"
    with pytest.raises(UserError, match="--precision"):
        compose([*args, "--accelerator=cpu", "--precision=auto", "--trainer.devices=2"])


def test_one_process_at_a_time_trains_in_a_folder(caplog):
    """Two that continue one run would write over each other's checkpoints, and their metrics would be mixed."""
    one_update = {"trainer.limit_train_batches": 1}
    first = small(max_epochs=1, resume=True, options=one_update)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    # A program that takes the lock of the folder, says so with an empty line, and keeps it until it gets one.
    holder = f"""if True:
        from layershuffle.files import WriterLock
        lock = WriterLock({str(first.folder)!r})
        print(flush=True)
        input()
        """
    caplog.set_level("INFO", "layershuffle")
    caplog.clear()
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for arguments in ({"resume": True}, {"folder": first.folder, "resume": True}, {"folder": first.folder}):
            with pytest.raises(UserError, match=rf"version_0 is being written by process {other.pid} on"):
                small(max_epochs=1, options=one_update, **arguments)
        assert caplog.messages == []  # nothing is announced that is refused
        other.communicate(b"\n")
    assert {path: path.read_bytes() for path in before} == before

    # When the other process has ended, the run goes on.
    assert small(max_epochs=1, resume=True, options=one_update).folder == first.folder
    assert os.listdir("runs") == ["version_0"]


def test_a_run_that_fails_at_once_leaves_nothing():
    with pytest.raises(UserError, match="epochs"):
        small(max_epochs=-1, options={"model.schedule.shape": "linear"})
    assert os.listdir(".") == []


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"trainer.limit_val_batches": 0}, "limit_val_batches 0"),
        ({"trainer.check_val_every_n_epoch": 2}, "before its first validation"),
        ({"trainer.limit_train_batches": 0}, "limit_train_batches"),
        ({"trainer.fast_dev_run": True}, "fast_dev_run"),
    ],
)
def test_why_there_is_no_best_checkpoint(caplog, option, said):
    caplog.set_level("INFO", logger="layershuffle")
    run = small(max_epochs=1, options=option)
    assert run.best is None
    (message,) = [text for text in caplog.messages if text.startswith("no ") and "checkpoint: " in text]
    assert said in message


@pytest.mark.parametrize("resumed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_last_checkpoint_that_is_clearly_better_is_named(monkeypatch, caplog, resumed):
    log = FineTuner.log

    def log_rising_loss(module, name, value, **kwargs):
        if name == "val/loss":
            value = float(module.global_step)
        log(module, name, value, **kwargs)

    # The first checkpoint has the lowest loss, while the accuracies get better.
    monkeypatch.setattr(FineTuner, "log", log_rising_loss)
    options = {"data.train_images": 1000}
    if resumed:
        small(optimizer="mini", folder="run", max_epochs=1, options=options)
        assert "by val/loss" not in caplog.text
        options["ckpt_path"] = "run/checkpoints/last.ckpt"
    run = small(optimizer="mini", folder="run", max_epochs=8, options=options)
    assert run.folder == Path("run")
    (message,) = [text for text in caplog.messages if "by val/loss" in text]
    # It names one of the two accuracies.
    better = "val/arbitrary" if "has val/arbitrary " in message else "val/sequential"
    assert f"the last one {100 * run.metrics[better]:.1f}%" in message
    assert f"--checkpoint.monitor {better}" in message


@pytest.mark.parametrize(
    ("arbitrary", "sequential", "better"),
    [
        (0.5, 0.6, None),
        (0.54, 0.64, None),
        (0.56, 0.6, "val/arbitrary"),
        (0.56, 0.7, "val/sequential"),
        (0.8, 0.59, None),
    ],
)
def test_the_last_checkpoint_is_better_if_one_score_is_and_none_is_worse(arbitrary, sequential, better):
    """The best checkpoint has 0.5 and 0.6, and a difference of less than 0.05 is no clear one."""
    callback = BestCheckpoint("checkpoints", "best", "val/loss")
    callback.best_scores = {"val/arbitrary": 0.5, "val/sequential": 0.6}
    of_last = {"val/arbitrary": torch.tensor(arbitrary), "val/sequential": torch.tensor(sequential)}
    assert callback.better_last(SimpleNamespace(callback_metrics=of_last)) == better


def test_a_trial_writes_nothing_and_ignores_other_checkpoints():
    Path("checkpoints").mkdir()
    Path("checkpoints/last.ckpt").write_text("of somebody else")
    small(options={"trainer.fast_dev_run": True})
    assert os.listdir("checkpoints") == ["last.ckpt"]
    assert os.listdir(".") == ["checkpoints"]


def test_a_program_sees_no_messages_of_lightning():
    """In a process of its own, because the tests silence them themselves."""
    options = SMALL | {"data.workers": 0, "trainer.limit_val_batches": 0}
    program = f"""if True:
        import layershuffle
        layershuffle.train("mini_digits", "digits", "baseline", trainer="cpu", max_steps=1, options={options})
        """
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert process.stdout == ""
    assert process.stderr == ""
