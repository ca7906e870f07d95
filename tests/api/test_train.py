"""``layershuffle.train``: a run composed by names and options, which is the run of the same command."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

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


def small(*args, **kwargs):
    """Train a small model."""
    options = SMALL | kwargs.pop("options", {})
    return layershuffle.train("mini_digits", "digits", *args, trainer="cpu", options=options, **kwargs)


def test_a_call_trains_what_the_command_trains():
    run = small("layershuffle_position", optimizer="mini", max_epochs=1, seed=3, folder="by/call", batch_size=50)
    options = ["--trainer.max_epochs=1", "--seed=3", "--data.batch_size=50", *as_options(SMALL)]
    names = ["mini_digits", "digits", "layershuffle_position", "mini", "cpu"]
    other = train_command([*names, *options, "--trainer.logger.save_dir=by", "--trainer.logger.version=command"])
    assert run.folder.as_posix() == "by/call"
    assert run.best.as_posix() == "by/call/checkpoints/best.ckpt"
    assert run.last.is_file()
    assert (run.folder / "config.yaml").is_file()
    assert (run.compute.images, run.compute.updates) == (100, 2)
    assert {"train/loss", "val/loss", "val/sequential"} <= set(run.metrics)
    states = [torch.load(each.last, weights_only=True)["state_dict"] for each in (run, other)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_resuming_continues_the_run_of_the_same_call():
    first = small(max_epochs=1, resume=True, options={"trainer.limit_train_batches": 1})
    again = small(max_epochs=1, resume=True, options={"trainer.limit_train_batches": 1})
    assert first.folder == again.folder
    assert again.trainer.ckpt_path.endswith("last.ckpt")
    other = small(max_epochs=1, resume=True, learning_rate=0.5, options={"trainer.limit_train_batches": 1})
    assert other.folder != first.folder


def test_a_model_may_be_one_of_timm():
    options = {"model.timm_args": {"img_size": 8, "patch_size": 4, "in_chans": 1, "depth": 2, "embed_dim": 32}}
    options["model.timm_args"]["num_heads"] = 2
    options |= {"data.train_images": 64, "trainer.enable_progress_bar": False, "model.pretrained": False}
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
    with pytest.raises(UserError, match=complaint):
        layershuffle.train(**{"model": "mini_digits", "data": "digits", "trainer": "cpu", **arguments})


def test_a_signal_raises_and_ends_no_process(monkeypatch):
    original = FineTuner.training_step

    def told_to_stop(module, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
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
    options = {"trainer.limit_train_batches": 1}
    first = small(max_epochs=1, resume=True, options=options)
    before = {path: path.read_bytes() for path in first.folder.rglob("*") if path.is_file()}
    lock = f"lock = WriterLock({str(first.folder)!r})"
    holder = f"from layershuffle.files import WriterLock; {lock}; print(flush=True); input()"
    caplog.set_level("INFO", "layershuffle")
    caplog.clear()
    with subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        for arguments in ({"resume": True}, {"folder": first.folder, "resume": True}, {"folder": first.folder}):
            with pytest.raises(UserError, match=rf"version_0 is being written by process {other.pid} on"):
                small(max_epochs=1, options=options, **arguments)
        assert caplog.messages == []  # nothing is announced that is refused
        other.communicate(b"\n")
    assert {path: path.read_bytes() for path in before} == before
    assert small(max_epochs=1, resume=True, options=options).folder == first.folder
    assert sorted(os.listdir("runs")) == ["version_0"]


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
        log(module, name, float(module.global_step) if name == "val/loss" else value, **kwargs)

    monkeypatch.setattr(FineTuner, "log", log_rising_loss)
    options = {"data.train_images": 1000}
    if resumed:
        small(optimizer="mini", folder="run", max_epochs=1, options=options)
        assert "by val/loss" not in caplog.text
        options["ckpt_path"] = "run/checkpoints/last.ckpt"
    run = small(optimizer="mini", folder="run", max_epochs=8, options=options)
    assert run.folder == Path("run")
    (message,) = [text for text in caplog.messages if "by val/loss" in text]
    better = max(("val/arbitrary", "val/sequential"), key=lambda name: f"has {name} " in message)
    assert f"the last one {100 * run.metrics[better]:.1f}%" in message
    assert f"--checkpoint.monitor {better}" in message


@pytest.mark.parametrize(
    ("last", "better"),
    [
        ((0.5, 0.6), None),
        ((0.54, 0.64), None),
        ((0.56, 0.6), "val/arbitrary"),
        ((0.56, 0.7), "val/sequential"),
        ((0.8, 0.59), None),
    ],
)
def test_the_last_checkpoint_is_better_if_one_score_is_and_none_is_worse(last, better):
    callback = BestCheckpoint("checkpoints", "best", "val/loss")
    callback.best_scores = {"val/arbitrary": 0.5, "val/sequential": 0.6}
    metrics = {"val/arbitrary": torch.tensor(last[0]), "val/sequential": torch.tensor(last[1])}
    assert callback.better_last(SimpleNamespace(callback_metrics=metrics)) == better


def test_a_trial_writes_nothing_and_ignores_other_checkpoints():
    Path("checkpoints").mkdir()
    Path("checkpoints/last.ckpt").write_text("of somebody else")
    small(options={"trainer.fast_dev_run": True})
    assert os.listdir("checkpoints") == ["last.ckpt"]
    assert os.listdir(".") == ["checkpoints"]


def test_a_program_sees_no_messages_of_lightning():
    """In a process of its own, because the tests silence them themselves."""
    options = {**SMALL, "data.workers": 0, "trainer.limit_val_batches": 0}
    call = f"'mini_digits', 'digits', 'baseline', trainer='cpu', max_steps=1, options={options}"
    program = f"import layershuffle; layershuffle.train({call})"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (printed.stdout, printed.stderr) == ("", "")
