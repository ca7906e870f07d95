"""What a run says while it lasts, and Lightning's own callbacks."""

import os
import signal

import pytest
import torch
from helpers import DIGITS, QUIET

from layershuffle.checkpoints.loading import load
from layershuffle.commands.train import train_command
from layershuffle.progress_lines import LineClock
from layershuffle.training.checkpointing import SIGNALS
from layershuffle.training.module import FineTuner

TINY = [*DIGITS, "--model.timm_args.depth=2", "--data.train_images=300"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def test_each_epoch_is_one_line_within_80_columns(capsys):
    train_command([*TINY, "--trainer.max_epochs=2"])
    captured = capsys.readouterr()
    said = captured.err.splitlines()
    model = next(line for line in said if line.startswith("model: vit_tiny_patch16_224, 2 layers, 0.0"))
    assert model.endswith("M parameters, random weights")
    first = next(index for index, line in enumerate(said) if line.split()[:1] == ["epoch"])  # after the data
    assert [line.split()[0] for line in said[first : first + 3]] == ["epoch", "1", "2"]
    assert {"train/loss", "val/loss", "val/sequential", "val/arbitrary"} < set(said[first].split())
    assert all(len(line.split()) == len(said[first].split()) for line in said[first + 1 : first + 3])
    assert [line.partition(":")[0] for line in said[first + 3 :] if line] == ["cost", "evaluate it with"]
    assert [line.partition(":")[0] for line in captured.out.splitlines()] == ["best checkpoint", "last checkpoint"]
    assert max(len(line) for line in said if not line.startswith("warning: ")) <= 80


@pytest.mark.parametrize("bar", [[], QUIET])
def test_without_a_terminal_lines_say_how_far_it_is(monkeypatch, caplog, bar):
    caplog.set_level("INFO", "layershuffle")
    monkeypatch.setattr(LineClock, "strikes", lambda clock: True)
    args = [*TINY, *bar, "--data.batch_size=50", "--trainer.accumulate_grad_batches=2"]
    train_command([*args, "--trainer.max_steps=3"])
    told = [text for text in caplog.messages if text.startswith("training")]
    # Of five batches, two and two and the last make an update; after the very first batch there is nothing to tell.
    assert [text.split()[1] for text in told] == ["1", "1", "2", "3"]
    assert all(text.split()[2:5] == ["of", "3", "updates,"] for text in told)


def test_early_stopping_and_weight_averaging_work(tmp_path, capsys):
    stop = [
        "--trainer.callbacks=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks.patience=0",
    ]
    ended = train_command([*TINY, "--trainer.max_epochs=9", *stop, "--trainer.callbacks.min_delta=9"]).trainer
    assert ended.current_epoch == 2
    with pytest.raises(ValueError, match="conditioned on metric `val/los` which is not available"):
        train_command([*TINY, "--trainer.max_epochs=2", *stop, "--trainer.callbacks.monitor=val/los"])
    averaged = [*TINY, "--trainer.max_steps=3", "--trainer.callbacks=EMAWeightAveraging", "--trainer.callbacks.decay=0"]
    kept = [train_command(args) for args in ([*TINY, "--trainer.max_steps=3"], averaged, [*averaged[:-1], "--resume"])]
    found = [load(run.last).model.state_dict() for run in kept]
    assert all(
        torch.allclose(value, found[1][name]) for name, value in found[0].items()
    )  # a decay of 0 averages nothing
    assert not all(torch.equal(value, found[2][name]) for name, value in found[0].items())


def test_a_signal_during_the_last_validation_ends_the_process_once_all_is_saved(monkeypatch, capsys):
    before = [signal.getsignal(number) for number in SIGNALS]
    validated = []

    def told_to_stop(module):
        validated.append(module.global_step)
        if len(validated) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FineTuner, "on_validation_end", told_to_stop)
    command = [*TINY, *QUIET, "--trainer.max_epochs=2", "--data.batch_size=128", "--trainer.num_sanity_val_steps=0"]
    with pytest.raises(SystemExit) as stop:
        train_command([*command, "--resume"])
    assert stop.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert "SIGTERM: stopped after step 4, saved runs/version_0/checkpoints/last.ckpt" in capsys.readouterr().err
    assert train_command([*command, "--resume"]).trainer.global_step == 4  # which is what was asked for
