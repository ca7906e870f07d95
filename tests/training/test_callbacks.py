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


def labels_of(lines):
    """What stands before the colon of each line."""
    return [line.partition(":")[0] for line in lines]


def test_each_epoch_is_one_line_within_80_columns(capsys):
    train_command([*TINY, "--trainer.max_epochs=2"])
    captured = capsys.readouterr()
    said = captured.err.splitlines()

    model = next(line for line in said if line.startswith("model: vit_tiny_patch16_224, 2 layers, 0.0"))
    assert model.endswith("M parameters, random weights")

    # The table: its heading and a line for each epoch, with a number for each word of the heading.
    begins = next(index for index, line in enumerate(said) if line.split()[:1] == ["epoch"])
    ends = begins + 3
    table = [line.split() for line in said[begins:ends]]
    heading = table[0]
    assert [words[0] for words in table] == ["epoch", "1", "2"]
    assert {"train/loss", "val/loss", "val/sequential", "val/arbitrary"} < set(heading)
    assert {len(words) for words in table} == {len(heading)}

    after_table = [line for line in said[ends:] if line]
    assert labels_of(after_table) == ["cost", "evaluate it with"]
    assert labels_of(captured.out.splitlines()) == ["best checkpoint", "last checkpoint"]
    assert max(len(line) for line in said if not line.startswith("warning: ")) <= 80


@pytest.mark.parametrize("bar", [[], QUIET])
def test_without_a_terminal_lines_say_how_far_it_is(monkeypatch, caplog, bar):
    caplog.set_level("INFO", "layershuffle")
    monkeypatch.setattr(LineClock, "strikes", lambda clock: True)
    accumulated = ["--data.batch_size=50", "--trainer.accumulate_grad_batches=2"]
    train_command([*TINY, *bar, *accumulated, "--trainer.max_steps=3"])

    told = [text.split() for text in caplog.messages if text.startswith("training")]
    # Of five batches, two and two and the last make an update; after the very first batch there is nothing to tell.
    assert [words[1] for words in told] == ["1", "1", "2", "3"]
    for words in told:
        assert words[2:5] == ["of", "3", "updates,"]


def test_early_stopping_and_weight_averaging_work(tmp_path, capsys):
    # No loss improves by 9, so that the second epoch is one too many.
    stopping = [
        "--trainer.callbacks=EarlyStopping",
        "--trainer.callbacks.monitor=val/loss",
        "--trainer.callbacks.patience=0",
    ]
    stopped = train_command([*TINY, "--trainer.max_epochs=9", *stopping, "--trainer.callbacks.min_delta=9"]).trainer
    assert stopped.current_epoch == 2

    with pytest.raises(ValueError, match="conditioned on metric `val/los` which is not available"):
        train_command([*TINY, "--trainer.max_epochs=2", *stopping, "--trainer.callbacks.monitor=val/los"])

    def weights_after(command):
        return load(train_command(command).last).model.state_dict()

    short = [*TINY, "--trainer.max_steps=3"]
    averaging = "--trainer.callbacks=EMAWeightAveraging"
    plain = weights_after(short)
    # A decay of 0 averages nothing, and the default one much.
    barely_averaged = weights_after([*short, averaging, "--trainer.callbacks.decay=0"])
    averaged = weights_after([*short, averaging, "--resume"])
    assert all(torch.allclose(value, barely_averaged[name]) for name, value in plain.items())
    assert not all(torch.equal(value, averaged[name]) for name, value in plain.items())


def test_a_signal_during_the_last_validation_ends_the_process_once_all_is_saved(monkeypatch, capsys):
    handlers_before = [signal.getsignal(number) for number in SIGNALS]
    validations = 0

    def told_to_stop(module):
        nonlocal validations
        validations += 1
        if validations == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(FineTuner, "on_validation_end", told_to_stop)
    # Two epochs of two steps.
    command = [*TINY, *QUIET, "--trainer.max_epochs=2", "--data.batch_size=128", "--trainer.num_sanity_val_steps=0"]
    with pytest.raises(SystemExit) as stop:
        train_command([*command, "--resume"])

    assert stop.value.code == 128 + signal.SIGTERM
    assert [signal.getsignal(number) for number in SIGNALS] == handlers_before
    assert "SIGTERM: stopped after step 4, saved runs/version_0/checkpoints/last.ckpt" in capsys.readouterr().err
    assert train_command([*command, "--resume"]).trainer.global_step == 4  # which is what was asked for
